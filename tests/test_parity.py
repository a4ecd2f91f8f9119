"""Two ranks compute what one computes: float64, live proposals, the real loop without DeepSpeed.

Four ranks and more steps: `make test-distributed`.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ranks import launch

from tests.batches import hybrid_batch, rank_part
from tests.models import tiny_model
from tests.parity import ENGINE, FLOAT64, Case, deviation, trained
from tests.parity_batches import KINDS
from training.distributed import all_gather_rows, rank
from training.engine import EngineConfig, close_distributed, init_distributed


@pytest.mark.launched
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    case = Case(plain=True)
    one, two = (trained(size, tmp_path, [case], steps=len(KINDS)) for size in (1, 2))
    largest = deviation(one / case.name, two / case.name)
    assert largest.value < FLOAT64, largest


@pytest.mark.launched
def test_accumulation_uses_the_whole_steps_denominators(tmp_path: Path) -> None:
    """With frozen statistics, which do not depend on the split, two micro-steps equal one."""
    whole, halves = (Case(plain=True, frozen=True, accumulation=n) for n in (1, 2))
    run = trained(1, tmp_path, [whole, halves], steps=3)
    largest = deviation(run / whole.name, run / halves.name)
    assert largest.value < FLOAT64, largest


@dataclass(frozen=True)
class Gather:
    """Each rank as many rows as its number."""

    def __call__(self) -> None:
        init_distributed(EngineConfig.model_validate(ENGINE))
        rows = torch.full((rank(), 1), rank())
        assert all_gather_rows(rows)[:, 0].tolist() == [1, 2, 2]
        close_distributed()


@pytest.mark.launched
def test_ranks_gather_rows_of_any_number(tmp_path: Path) -> None:
    launch(3, Gather(), tmp_path / "ranks")


def test_the_split_decides_nothing_that_is_drawn() -> None:
    """Anchors and RoIs sampled for an image are the same alone and among others."""
    model, batch = tiny_model().double(), hybrid_batch()
    for module in model.modules():
        module.training = False
    both = model.search(batch.scenes, "scenes")
    alone = model.search(rank_part(batch, 1, 4).scenes, "scenes")
    torch.testing.assert_close(both.rois.boxes[[1, 5]], alone.rois.boxes)
    torch.testing.assert_close(both.anchors.labels[[1, 5]], alone.anchors.labels)
