"""Settings for speed change rounding alone, and what the host knows is not read from the device."""

import copy

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from pipeline.batch import Use
from tests.batches import hybrid_batch, make_images
from tests.models import jittered_config, tiny_model
from training.hybrid import HybridModel
from training.model.norm import CrossRankNorm
from training.model.person_search import _match_boxes
from training.model.targets import GroundTruth
from training.schedule import OptimiserConfig, build_optimizer
from training.speed import SpeedConfig, prepare


def losses(model: HybridModel, step: int) -> dict[str, float]:
    batch = hybrid_batch(step)
    output = model(batch, model.denominators([batch]), step)
    return {name: value.item() for name, value in output.losses.items()}


def test_filled_up_rois_count_nothing() -> None:
    plain = tiny_model(jittered_config())
    fast = copy.deepcopy(plain)
    prepare(fast.search, SpeedConfig(roi_multiple=64))
    assert losses(fast, 1) == pytest.approx(losses(plain, 1), rel=1e-4, abs=1e-6)
    assert list(fast.state_dict()) == list(plain.state_dict())
    norms = [module for module in fast.modules() if isinstance(module, CrossRankNorm)]
    assert norms and all(norm.running_mean.isfinite().all() for norm in norms)


def test_dense_parts_alone_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    model = tiny_model()
    names = {module: name for name, module in model.named_modules()}
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compiled.append(names[self])
    )
    prepare(model.search, SpeedConfig(compile=True))
    assert compiled == ["search.backbone", "search.rpn.head", "search.head.layer4"]
    compiled.clear()
    monkeypatch.setattr("training.speed.world_size", lambda: 2)
    prepare(model.search, SpeedConfig(compile=True))
    assert compiled == ["search.rpn.head"]


def test_counts_and_indices_come_from_the_host() -> None:
    """On a device without data nothing can be read."""
    images = make_images((64, 96), [3, 0, 2])
    images.views[1].use[1] = int(Use.DETECT)
    moved = images.to("meta")
    assert GroundTruth.of(moved).boxes.shape == GroundTruth.of(images).boxes.shape == (6, 3, 4)
    *parts, per_image = _match_boxes(moved)
    assert [part.shape for part in parts] == [(9,), (9,), (9, 4)]
    assert per_image == [3, 0, 2, 2, 0, 2]


def test_boxes_too_small_suppress_nothing_and_are_no_proposals() -> None:
    rpn = tiny_model().search.rpn
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(200, 4, generator=generator) * 30
    anchors[:, 2:] = anchors[:, :2] + torch.rand(200, 2, generator=generator) * 20
    anchors[::3, 2:] = anchors[::3, :2] + 0.5
    logits = torch.randn(2, 200, generator=generator)
    size = torch.tensor([[64, 96], [64, 96]])
    found, real = rpn._propose(logits, torch.zeros(2, 200, 4), anchors, size, (200, 100))
    for boxes, are, scores in zip(found, real, logits):
        assert torch.allclose(boxes[are], _by_filter(anchors, scores, rpn.config.nms_iou))
        assert not boxes[~are].any()


def _by_filter(anchors: Tensor, scores: Tensor, iou: float) -> Tensor:
    large = ((anchors[:, 2:] - anchors[:, :2]) >= 1).all(1)
    boxes, scores = anchors[large], scores[large]
    return boxes[nms(boxes, scores, iou)[:100]]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_fused_optimiser_keeps_the_same_state(kind: str) -> None:
    config = OptimiserConfig.model_validate({"kind": kind, "lr": 1e-2, "lr_per_images": None})
    states = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = build_optimizer(model, config, 1, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        kept = [optimizer.state[parameter] for parameter in model.parameters()]
        states.append([{**state, "weight": p} for state, p in zip(kept, model.parameters())])
    for plain, quick in zip(*states, strict=True):
        assert plain.keys() == quick.keys()
        for name, value in plain.items():
            torch.testing.assert_close(quick[name], value)
