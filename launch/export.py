"""Weights of a run under the names that other code loads: python launch/export.py RUN --target torchvision"""

import argparse
from pathlib import Path

from pipeline.errors import UserError, run_command
from training.checkpoint import STATE, Checkpoint, State, find_damage
from training.export import TARGETS, Exported, export, write_files
from training.run import Run, load_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--target", choices=sorted(TARGETS), default="torchvision")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the newest")
    parser.add_argument(
        "--out", help="default: RUN/export/TARGET-BACKBONE, .safetensors, .pth and .json"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    run = load_run(arguments.run)
    checkpoint = (
        run.checkpoint() if arguments.checkpoint is None else _at(run, arguments.checkpoint)
    )
    backbone = run.config.hybrid.model.backbone.name
    exported = export(arguments.target, checkpoint.model(), backbone)
    default = run.folder.path / "export" / f"{arguments.target}-{backbone}"
    origin = {
        "run": run.folder.path.name,
        "step": checkpoint.state.step,
        "images": checkpoint.state.images,
        "sample_digest": checkpoint.state.sample_digest,
        "backbone": backbone,
    }
    files = write_files(exported, _stem(arguments.out) if arguments.out else default, origin)
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
    return path.with_suffix("") if path.suffix in (".pth", ".safetensors", ".json") else path


def _print_account(exported: Exported, checkpoint: Checkpoint) -> None:
    groups = sorted({name.split(".")[0] + "." + name.split(".")[1] for name in exported.dropped})
    print(f"{checkpoint.path} -> {exported.target}")
    print(
        f"  mapped   {len(exported.mapped)} tensors, all that {exported.target} shares with the model"
    )
    print(f"  added    {len(exported.added)} constants")
    print(f"  dropped  {len(exported.dropped)} tensors of {', '.join(groups)}")
    print(
        f"  missing  {', '.join(exported.missing) or 'nothing'}: left as the target initialises it"
    )


if __name__ == "__main__":
    run_command(main)
