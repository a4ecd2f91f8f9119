"""Weights of a run under the names that other code loads: python launch/export.py RUN --target nae"""

import argparse
import json
from pathlib import Path

from torch import Tensor

from launch.evaluation.recorded import evaluations_of
from pipeline.errors import UserError, run_command
from training.checkpoint import Checkpoint, step_name
from training.export.card import write_card
from training.export.exported import Exported, export
from training.export.files import SUFFIXES, write_files
from training.export.measured import Evaluation
from training.export.re_estimation import re_estimate
from training.export.targets import NAMES, OWN
from training.model.weights import with_seen_statistics
from training.run import ENVIRONMENT_FILE, Run, build_model, open_run
from training.trained import header, read_header


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run folder, or RUN/checkpoints/step-* for one of it")
    parser.add_argument("--target", choices=NAMES, default="torchvision")
    parser.add_argument(
        "--part", choices=("backbone", "model"), help="default: all that the target takes"
    )
    parser.add_argument(
        "--re-estimate",
        type=int,
        default=0,
        metavar="N",
        help="measure the norms' statistics anew on N scenes of the run's shards",
    )
    parser.add_argument("--out", help=f"default: RUN/export/TARGET-BACKBONE, {', '.join(SUFFIXES)}")
    arguments = parser.parse_args()
    if arguments.re_estimate < 0:
        parser.error("--re-estimate takes a number of scenes")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    require_not_exported(Path(arguments.run), arguments.target)
    run, checkpoint = open_run(arguments.run)
    model = run.config.hybrid.model
    tensors, scenes = with_seen_statistics(checkpoint.model()), 0
    if arguments.re_estimate:
        tensors, scenes = _re_estimated(run, checkpoint, arguments.re_estimate)
    exported = export(arguments.target, arguments.part, tensors, model)
    origin = {
        "run": run.folder.path.name,
        "step": checkpoint.state.step,
        "images": checkpoint.state.images,
        "sample_digest": checkpoint.state.sample_digest,
        "backbone": model.backbone.name,
        "statistics_from_scenes": scenes or None,
    }
    stem = _stem(arguments.out) if arguments.out else _default_stem(run, exported)
    evaluations = [] if scenes else _evaluations(run, checkpoint)
    card = write_card(exported, run, checkpoint, stem.name, scenes, evaluations)
    metadata = None
    if exported.target == OWN:
        metadata = header(run.weights(checkpoint), exported.tensors, scenes).metadata()
    files = write_files(exported, stem, origin, card, metadata)
    _print_account(exported, checkpoint)
    for path in files:
        print(f"  {path}")


def require_not_exported(path: Path, target: str) -> None:
    """Raises UserError if `path` is a file that was exported as person_search."""
    try:
        found = read_header(path)
    except UserError:  # a folder, or any other file, of which `open_run` speaks
        return
    raise UserError(
        f"{path} was exported from a run, and an exported file cannot be exported again. The run can: it is "
        f"named {found.run.name}, and these are its weights of step {found.step}. With its folder as RUN: "
        f"python launch/export.py RUN/checkpoints/{step_name(found.step)} --target {target}"
    )


def _re_estimated(run: Run, checkpoint: Checkpoint, scenes: int) -> tuple[dict[str, Tensor], int]:
    model = build_model(run.config, run.identities, run.domains, load_weights=False)
    checkpoint.load_into(model)
    environment = json.loads((run.folder.path / ENVIRONMENT_FILE).read_text())
    slices = environment["world_size"] * run.config.engine.accumulation
    seen = re_estimate(model.search, run.config, run.identities, slices, scenes)
    return model.state_dict(), seen


def _evaluations(run: Run, checkpoint: Checkpoint) -> list[Evaluation]:
    found = evaluations_of(run.folder.path, checkpoint.sha256)
    for file in (file for file, one in found.items() if one is None):
        print(f"note: {file} cannot be read as an evaluation: the card says nothing of it.")
    return [one for one in found.values() if one is not None]


def _stem(out: str) -> Path:
    """All files are written beside each other, whichever of them was named."""
    path = Path(out)
    return path.with_suffix("") if path.suffix in SUFFIXES else path


def _default_stem(run: Run, exported: Exported) -> Path:
    whole = exported.part == exported.spec.default_part
    backbone = run.config.hybrid.model.backbone.name
    name = f"{exported.target}-{backbone}" + ("" if whole else f"-{exported.part}")
    return run.folder.path / "export" / name


def _print_account(exported: Exported, checkpoint: Checkpoint) -> None:
    print(f"{checkpoint.path} -> {exported.target}, {exported.part}")
    rows = [
        (f"{row.name}*", f"{row.source}*", row.how, f"{row.given} of {row.wanted}")
        for row in exported.coverage
    ]
    table = [("target", "trained model", "how", "tensors"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    groups = sorted({".".join(name.split(".")[:2]) for name in exported.dropped})
    print(f"  mapped   {len(exported.mapped)} tensors: all that the two share")
    print(f"  added    {len(exported.added)} constants")
    print(f"  dropped  {len(exported.dropped)} tensors of {', '.join(groups)}")
    print(
        f"  missing  {', '.join(exported.missing) or 'nothing'}: left as the target initialises it"
    )


if __name__ == "__main__":
    run_command(main)
