"""The real loop and engine on hand-made batches: a run without shards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.batch import Batch
from pipeline.ledger import Ledger
from pipeline.settings import StreamConfig
from pipeline.stats import StreamStats
from pipeline.stream import Stream
from tests.batches import rank_part
from tests.models import jittered_config, tiny_model
from training.distributed import rank, world_size
from training.engine import Engine
from training.hybrid import HybridConfig, HybridModel
from training.loop import train
from training.run import RunFolder
from training.run_config import RunConfig
from training.schedule import build_optimizer
from training.whereabouts import Whereabouts

GLOBAL_BATCH = 24
"""For DeepSpeed's counters alone, which want it to be a multiple of ranks x micro-steps."""
Split = Callable[[Batch, int, int], Batch]
"""(global batch, part, parts) -> what that part holds."""
Prepare = Callable[[HybridModel], None]
"""Changes a model before an engine gets it."""


@dataclass
class HandMadeStream:
    global_batches: Sequence[Batch]
    accumulation: int = 1
    split: Split = rank_part
    stats: StreamStats = field(default_factory=lambda: StreamStats((), Ledger(1.0, 100)))

    @contextmanager
    def batches(self, first: int, stop: int) -> Iterator[Iterator[Batch]]:
        parts = world_size() * self.accumulation
        mine = range(rank() * self.accumulation, (rank() + 1) * self.accumulation)
        chosen = self.global_batches[first:stop]
        yield (self.split(batch, part, parts) for batch in chosen for part in mine)

    def history_digest(self, step: int) -> str:
        return "by hand"


def train_by_hand(
    folder: Path,
    batches: Sequence[Batch],
    device: torch.device,
    kind: type[HybridModel] = HybridModel,
    split: Split = rank_part,
    hybrid: HybridConfig | None = None,
    prepare: Prepare | None = None,
    make_engine: Callable[..., Engine] = Engine,
    **changes: Any,
) -> RunFolder:
    """One step a batch, saved after each; `changes` are sections of the run's settings."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = {
        "optimiser": {"kind": "adamw", "lr": 1e-3, "lr_per_images": None, "warmup_steps": 2},
        "engine": {"threads": 1, "timeout_s": 60},
        "checkpoint": {"every": 1, "keep": 100},
        "log": {"every": 1, "tensorboard": False, "check_tables_every": 1},
    }
    tree = {"run": str(folder), "steps": len(batches), **sections, **changes}
    hybrid = hybrid or jittered_config()
    config = RunConfig(stream=StreamConfig(), hybrid=hybrid, **tree)
    model = tiny_model(hybrid)
    model.__class__ = kind
    if prepare is not None:
        prepare(model)
    constant = model.constant_lr_parameters()
    optimizer = build_optimizer(model, config.optimiser, GLOBAL_BATCH, constant)
    tracked = model.running_statistics()
    engine = make_engine(model, optimizer, config.engine, device, GLOBAL_BATCH, tracked)
    run, stream = RunFolder(folder), HandMadeStream(batches, config.engine.accumulation, split)
    here = Whereabouts(config.engine.timeout_s)
    train(config, run, cast(Stream, stream), model, engine, None, here)
    return run
