"""A rank whose OIM tables differ from the others' ends the run, at the next comparison and on all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ranks import lines, ranks

from tests.by_hand import train_by_hand
from tests.models import tiny_model
from tests.parity import ENGINE, small_config
from tests.parity_batches import split, stop_at
from training.distributed import rank
from training.engine import EngineConfig, init_distributed
from training.hybrid import HybridModel
from training.losses.oim import TableRows

EVERY, STEPS = 2, 4


class TamperedModel(HybridModel):
    """In the first step, a row of rank 1's look-up table that no step fills moves by the least it can."""

    def update_tables(self, rows: Sequence[TableRows]) -> None:
        first = not self.tables.lut_filled.any()
        super().update_tables(rows)
        if first and rank() == 1:
            number = self.tables.lut[-1, -1]
            number.copy_(torch.nextafter(number, torch.tensor(2.0)))


@dataclass(frozen=True)
class TamperedRun:
    folder: Path

    def __call__(self) -> None:
        train_by_hand(
            self.folder,
            [stop_at(step).batch for step in range(STEPS)],
            init_distributed(EngineConfig.model_validate(ENGINE)),
            TamperedModel,
            split,
            small_config(rounds=True),
            engine=ENGINE,
            checkpoint={"every": STEPS},
            log={"every": 1, "tensorboard": False, "check_tables_every": EVERY},
        )


@pytest.mark.launched
def test_other_tables_on_one_rank_end_the_run(tmp_path: Path) -> None:
    with ranks(2, TamperedRun(tmp_path / "run"), tmp_path / "ranks") as launched:
        assert launched.wait() == [1, 1], launched.output()
    for number in (0, 1):
        said = (tmp_path / f"ranks/log-{number}").read_text()
        assert "RuntimeError: the OIM tables differ between ranks" in said
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, EVERY))
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


@pytest.mark.parametrize(
    "name", ["lut", "lut_filled", "queue", "queue_filled", "queue_head", "queue_instance"]
)
def test_the_digest_covers_every_table(name: str) -> None:
    model = tiny_model(small_config(rounds=True))
    assert name in dict(model.tables.named_buffers())
    before = model.tables_digest()
    table = model.tables.get_buffer(name).view(-1)
    table[-1] = ~table[-1] if table.dtype == torch.bool else table[-1] + 1
    assert model.tables_digest() != before
