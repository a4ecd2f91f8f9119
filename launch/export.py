"""Weights of a run under the names that other code loads: python launch/export.py RUN --target nae"""

import argparse
from pathlib import Path

from pipeline.errors import UserError, run_command
from training.checkpoint import STATE, Checkpoint, State, find_damage
from training.export.card import write_card
from training.export.exported import Exported, default_part, export
from training.export.files import SUFFIXES, write_files
from training.export.targets import NAMES
from training.run import Run, load_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--target", choices=NAMES, default="torchvision")
    parser.add_argument(
        "--part", choices=("backbone", "model"), help="default: all that the target takes"
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the newest")
    parser.add_argument("--out", help=f"default: RUN/export/TARGET-BACKBONE, {', '.join(SUFFIXES)}")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    run = load_run(arguments.run)
    checkpoint = (
        run.checkpoint() if arguments.checkpoint is None else _at(run, arguments.checkpoint)
    )
    model = run.config.hybrid.model
    exported = export(arguments.target, arguments.part, checkpoint.model(), model)
    origin = {
        "run": run.folder.path.name,
        "step": checkpoint.state.step,
        "images": checkpoint.state.images,
        "sample_digest": checkpoint.state.sample_digest,
        "backbone": model.backbone.name,
    }
    stem = _stem(arguments.out) if arguments.out else _default_stem(run, exported)
    card = write_card(exported, run, checkpoint, stem.name)
    files = write_files(exported, stem, origin, card)
    _print_account(exported, checkpoint)
    for path in files:
        print(f"  {path}")


def _at(run: Run, step: int) -> Checkpoint:
    folder = run.folder.path / "checkpoints"
    path = folder / f"step-{step:08d}"
    if not path.is_dir():
        kept = sorted(found.name for found in folder.glob("step-*"))
        raise UserError(
            f"no checkpoint of step {step} in {folder}; kept: {', '.join(kept) or 'none'}."
        )
    if damage := find_damage(path):
        raise UserError(
            f"the checkpoint {path} is not whole: {damage}. Choose another --checkpoint."
        )
    return Checkpoint(path, State.model_validate_json((path / STATE).read_text()))


def _stem(out: str) -> Path:
    """All files are written beside each other, whichever of them was named."""
    path = Path(out)
    return path.with_suffix("") if path.suffix in SUFFIXES else path


def _default_stem(run: Run, exported: Exported) -> Path:
    backbone = run.config.hybrid.model.backbone.name
    whole = exported.part == default_part(exported.target, backbone)
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
