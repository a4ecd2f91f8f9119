"""A step that is not finite on one rank leaves nothing behind on any, but a file that says so."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from ranks import BACKBONE, lines, ranks

from pipeline.batch import Batch
from pipeline.errors import run_command
from tests.batches import make_images
from tests.by_hand import jittered_config, train_by_hand
from training.checkpoint import MODEL, OPTIMIZER, Checkpoint, CheckpointConfig, Checkpoints
from training.distributed import rank
from training.engine import EngineConfig, close_distributed, init_distributed
from training.hybrid import HybridConfig, HybridModel, StepOutput
from training.model.backbones.common import BackboneConfig

pytestmark = pytest.mark.launched

BROKEN_LOSS, BROKEN_GRADIENT, OVER_THE_BOUND = 1, 2, 4
"""Steps, of rank 1 alone."""
STEPS = 4
ENGINE = {"threads": 1, "deterministic": True, "timeout_s": 60}


def small_batch(step: int) -> Batch:
    """2 scenes and 4 canvases."""
    identities = [[0], [1], [-1], [-1]]
    return Batch(
        step,
        make_images((64, 96), [2, 1], first_position=2 * step),
        make_images((64, 48), [1] * 4, identities, first_position=4 * step),
    )


def small_config() -> HybridConfig:
    config = jittered_config()
    backbone = BackboneConfig.model_validate(BACKBONE)
    return config.model_copy(
        update={"model": config.model.model_copy(update={"backbone": backbone})}
    )


class BrokenModel(HybridModel):
    def forward(self, batch: Batch, denominators: torch.Tensor, step: int) -> StepOutput:
        output = super().forward(batch, denominators, step)
        if rank() == 1 and step == BROKEN_LOSS:  # its gradient is finite
            output = broken(output, "oim", output.total + torch.inf)
        if rank() == 1 and step in (BROKEN_GRADIENT, OVER_THE_BOUND):
            output = broken(output, "roi_box", output.total * torch.nan)
        return output


def broken(output: StepOutput, name: str, total: torch.Tensor) -> StepOutput:
    losses = {**output.losses, name: torch.tensor(torch.nan)}
    return replace(output, losses=losses, total=total)


@dataclass(frozen=True)
class BrokenRun:
    """At both ZeRO stages; at stage 0 one step further, which breaks the bound."""

    folder: Path

    def __call__(self) -> None:
        device = init_distributed(EngineConfig.model_validate(ENGINE))
        batches = [small_batch(step) for step in range(STEPS + 1)]
        for stage, steps in ((1, STEPS), (0, STEPS + 1)):
            run_command(partial(self.train, device, stage, batches[:steps]))
        close_distributed()

    def train(self, device: torch.device, stage: int, batches: list[Batch]) -> None:
        engine = {**ENGINE, "zero_stage": stage, "max_nonfinite": 2}
        folder = self.folder / f"stage-{stage}"
        train_by_hand(folder, batches, device, BrokenModel, hybrid=small_config(), engine=engine)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nonfinite")
    with ranks(2, BrokenRun(folder), folder / "ranks") as launched:
        assert launched.wait() == [2, 2], launched.output()
    return folder


def checkpoint(run: Path, step: int) -> Path:
    return run / f"checkpoints/step-{step:08d}"


@pytest.mark.parametrize("stage", [0, 1])
def test_weights_statistics_tables_and_optimizer_stay(runs: Path, stage: int) -> None:
    run = runs / f"stage-{stage}"
    for name in (MODEL, OPTIMIZER):
        kept = [(checkpoint(run, step) / name).read_bytes() for step in range(1, STEPS + 1)]
        assert kept[0] == kept[1] == kept[2] != kept[3], name
    state = newest(run).state
    assert (state.skipped, state.images) == ((BROKEN_LOSS, BROKEN_GRADIENT), STEPS * 6)


def newest(run: Path) -> Checkpoint:
    found = Checkpoints(run / "checkpoints", CheckpointConfig()).newest()
    assert found is not None
    return found


def test_a_skipped_step_is_a_line_without_losses(runs: Path) -> None:
    logged = lines(runs / "stage-0")
    assert [line["total"] is None for line in logged] == [False, True, True, False]
    assert [line["statistics"]["skipped_steps"] for line in logged] == [0, 1, 2, 2]


@pytest.mark.parametrize(("step", "name"), [(BROKEN_LOSS, "oim"), (BROKEN_GRADIENT, "roi_box")])
def test_every_rank_writes_what_it_saw(runs: Path, step: int, name: str) -> None:
    batch = small_batch(step)
    assert batch.scenes is not None
    keys = []
    for number in (0, 1):
        path = runs / f"stage-1/nonfinite/{step:08d}-{number:05d}.json"
        seen = json.loads(path.read_text())
        (part,) = seen["micro_batches"]
        assert seen["step"] == step
        assert part["not_finite"] == ([name] if number == 1 else [])
        assert isinstance(seen["grad_norm"], float) is (step == BROKEN_LOSS)
        keys += [key for _, key in part["scenes"]]
    assert keys == list(batch.scenes.keys)


def test_more_than_the_bound_ends_the_run_on_all_ranks(runs: Path) -> None:
    for number in (0, 1):
        said = (runs / f"ranks/log-{number}").read_text()
        assert "error: 3 of the last 1000 steps had a loss or gradient that is not finite" in said
        assert "python -m pipeline look --config" in said
        assert "Traceback" not in said
