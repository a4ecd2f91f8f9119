"""The model on a GPU: what it computes and finds on the CPU, and trained with all that makes it fast."""

import copy
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from pipeline.batch import Batch
from tests.batches import hybrid_batch, make_images
from tests.models import jittered_config, tiny_model
from training.hybrid import HybridModel, StepOutput
from training.losses.oim import OimConfig, OimTables, TableRows
from training.schedule import OptimiserConfig, build_optimizer
from training.speed import SpeedConfig, choose_kernels, prepare

HEAVY: dict[str, Any] = {"jitter": 1, "blur": 1, "erase": 1, "match_height": 4}
FAST = SpeedConfig(compile=True)
FOUND_BOUNDS = {"boxes": 1e-3, "scores": 1e-5, "embeddings": 5e-5, "asked": 5e-5}
"""Boxes in pixels. Ten times what weights that are 1e-6 off change, and less than what TF32 does."""


def forward(model: HybridModel, batch: Batch, step: int = 1) -> StepOutput:
    device = model.search.mean.device
    return model(batch.to(device), model.denominators([batch]).to(device), step)


def model_with_tables() -> HybridModel:
    """Filled by a step, so that every loss counts."""
    model = tiny_model(jittered_config())
    model.update_tables([forward(model, hybrid_batch(0)).rows])
    return model


def test_losses_and_gradients_are_those_of_the_cpu(cuda: torch.device) -> None:
    choose_kernels(SpeedConfig())
    ours = model_with_tables()
    theirs = copy.deepcopy(ours).to(cuda)
    batch = hybrid_batch(1)
    outputs = [forward(model, batch) for model in (ours, theirs)]
    for output in outputs:
        output.total.backward()
    on_cpu, on_gpu = ({n: v.item() for n, v in o.losses.items()} for o in outputs)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4, abs=1e-6)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        error = (gradients[name].grad.cpu() - parameter.grad).norm()  # type: ignore[union-attr]
        assert error <= 1e-2 * parameter.grad.norm() + 1e-4, name


def test_settings_for_speed_change_rounding_alone(cuda: torch.device) -> None:
    choose_kernels(SpeedConfig())
    plain = model_with_tables().to(cuda)
    fast = copy.deepcopy(plain)
    prepare(fast.search, FAST)
    for number in (1, 3, 6):  # more and more RoIs
        scenes = make_images((64, 96), [number, 0, 2, 1], first_position=4 * number)
        batch = Batch(number, scenes, hybrid_batch(number).canvases)
        losses = [forward(model, batch).losses for model in (plain, fast)]
        first, second = ({n: v.item() for n, v in each.items()} for each in losses)
        assert second == pytest.approx(first, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_trains_in_bf16_and_compiled(cuda: torch.device, kind: str) -> None:
    choose_kernels(FAST)
    model = tiny_model(jittered_config()).to(cuda)
    prepare(model.search, FAST)
    config = OptimiserConfig.model_validate({"kind": kind, "lr": 1e-3, "lr_per_images": None})
    optimizer = build_optimizer(model, config, 12, fused=True)
    batch, totals = hybrid_batch(0), []
    for step in range(20):
        with torch.autocast("cuda", torch.bfloat16):
            output = forward(model, batch, step)
        optimizer.zero_grad()
        output.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        totals.append((output.total - output.weighted["oim"]).item())  # OIM's rises as tables fill
        model.update_tables([output.rows])
    assert all(map(math.isfinite, totals))
    assert sum(totals[-5:]) < 0.9 * sum(totals[:5])


def test_tables_take_the_same_rows_alike(cuda: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    tables = [OimTables(OimConfig(queue=8), 6, 16).to(device) for device in ("cpu", cuda)]
    for step in range(4):
        embedding = torch.nn.functional.normalize(torch.randn(10, 16, generator=generator), dim=1)
        identity = torch.randint(-1, 6, (10,), generator=generator)
        numbers = torch.arange(10) + 10 * step
        order = torch.stack([torch.zeros(10, dtype=torch.int64), numbers, numbers], 1)
        for table in tables:
            device = table.lut.device
            rows = [t.to(device) for t in (embedding, identity, numbers, order)]
            table.update(TableRows(*rows).gathered())
    on_cpu, on_gpu = (dict(table.named_buffers()) for table in tables)
    for name, ours in on_cpu.items():
        if ours.is_floating_point():
            torch.testing.assert_close(on_gpu[name].cpu(), ours, rtol=0, atol=1e-6)
        else:
            assert torch.equal(on_gpu[name].cpu(), ours), name


@pytest.mark.parametrize("task", ["detection", "reid"])
def test_views_rendered_on_it_are_those_of_the_cpu(
    cuda: torch.device, task: Literal["detection", "reid"]
) -> None:
    from pipeline.rendering.augment import AugmentConfig  # the other tests need no OpenCV
    from pipeline.rendering.geometry import Size
    from tests.pictures import render_batch, sample, textured

    stored = [
        sample(textured(180, 260, n), [(30.0 + n, 20, 80, 160)], task=task, lossless=False)
        for n in range(6)
    ]
    images = render_batch(
        [(s, s) for s in stored], Size(120, 160), AugmentConfig(mode="device", **HEAVY), task
    )
    for ours, theirs in zip(images.to("cpu").views, images.to(cuda).views, strict=True):
        assert _largest_difference(ours.pixels, theirs.pixels) <= 2
        assert torch.equal(ours.use, theirs.use.cpu())


def test_finds_whom_the_cpu_finds(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device and with the kernels of evaluation and search."""
    from test_inference import scenes, trained_model  # OpenCV again

    from training.device import inference_device
    from training.evaluation.scenes import find_people
    from training.model.inference import Finder, InferenceConfig

    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, device = trained_model(), inference_device()
    assert device.type == cuda.type
    ours, theirs = (
        find_people(Finder(copy.deepcopy(model).to(place), InferenceConfig()), scenes(4), 2)
        for place in (torch.device("cpu"), device)
    )
    for on_cpu, on_gpu in zip(ours, theirs, strict=True):
        assert len(on_cpu.scores) > 5
        for name, bound in FOUND_BOUNDS.items():
            expected, computed = getattr(on_cpu, name), getattr(on_gpu, name)
            torch.testing.assert_close(computed, expected, rtol=0, atol=bound)


def _largest_difference(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.cpu().int()).abs().max())
