"""Hybrid pre-training: deepspeed launch/pretrain.py --config launch/configs/pretrain/demo.yaml

Exit codes: 0 finished; 2 a mistake in the settings or data, explained in one paragraph; 75 stopped by
SIGTERM or SIGUSR1 after a checkpoint, start again with --resume.
"""

import argparse
import sys

import torch

from pipeline.config import load_config
from pipeline.errors import run_command
from pipeline.stream import Stream
from training.changes import Changes
from training.checkpoint import Checkpoint
from training.distributed import is_main, world_size
from training.engine import (
    Engine,
    close_distributed,
    init_distributed,
    launched_rank,
    launched_world_size,
)
from training.loop import train
from training.run import RunFolder, build_model, require_same_start, require_same_weights
from training.run_config import RunConfig
from training.schedule import build_optimizer
from training.signals import EXIT_STOPPED
from training.speed import prepare
from training.whereabouts import Whereabouts


def parse_arguments(description: str | None) -> argparse.Namespace:
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=style)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="a setting")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument(
        "--allow-change", action="store_true", help="resume though settings changed what is trained"
    )
    # DeepSpeed's launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments(__doc__)
    config = load_config(RunConfig, arguments.config, arguments.set)
    run(config, arguments.resume, arguments.allow_change)


def run(config: RunConfig, resume: bool, allow_change: bool) -> None:
    """One rank's part of a run, to its end or until a signal stops it."""
    # Whatever a user can get wrong is found here, on every rank alike, before the ranks meet.
    folder, rank = RunFolder(config.run), launched_rank()
    if not resume:
        folder.require_unused()
    start = folder.find_start(config.checkpoint) if resume else None
    config = folder.with_start(config, going_on=start is not None)
    stream = Stream.open(
        config.stream,
        rank,
        launched_world_size(),
        config.engine.accumulation,
        ledger_path=folder.ledger(rank),
        identities=folder.identities() if start else None,
    )
    changes = folder.changes(config, stream, start.state) if start else None
    if changes is not None and not allow_change:
        changes.require_permission(folder.path)
    lock = folder.claim() if rank == 0 else None

    device = init_distributed(config.engine)
    with Whereabouts(config.engine.timeout_s).told() as here:
        finished = train_together(config, folder, stream, start, changes, device, here)
    close_distributed()
    if lock is not None:
        lock.close()
    if not finished:
        sys.exit(EXIT_STOPPED)


def train_together(
    config: RunConfig,
    folder: RunFolder,
    stream: Stream,
    start: Checkpoint | None,
    changes: Changes | None,
    device: torch.device,
    here: Whereabouts,
) -> bool:
    """What the ranks do together; False if a signal stopped it. Collective."""
    require_same_start(start, device)
    model = build_model(config, stream.identities, stream.domains, load_weights=start is None)
    require_same_weights(model.search.first_weights, device)
    prepare(model.search, config.engine.speed)
    global_batch = config.stream.scene_batch + config.stream.canvas_batch
    optimizer = build_optimizer(
        model,
        config.optimiser,
        global_batch,
        model.constant_lr_parameters(),
        fused=device.type == "cuda",
    )
    tracked = model.running_statistics()
    engine = Engine(model, optimizer, config.engine, device, global_batch, tracked)
    if start is not None:
        engine.restore(start)
    if is_main():  # only now: a resume that is refused leaves the folder as it was
        if start is not None and changes is not None:
            folder.checkpoints(config.checkpoint).recover(start)
            changes.record(folder.path)
        folder.create(config, stream, start.state.step if start else 0)
        if start is None:
            folder.record_weights(model.search.first_weights)
    return train(config, folder, stream, model, engine, start.state if start else None, here)


if __name__ == "__main__":
    run_command(main, speaks=lambda: launched_rank() == 0 or world_size() > 1)
