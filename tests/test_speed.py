"""Settings for speed change rounding alone, and what the host knows is not read from the device."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from pipeline.batch import Use
from tests.batches import hybrid_batch, make_images
from tests.models import jittered_config, tiny_model
from training.model.person_search import _match_boxes
from training.model.targets import GroundTruth
from training.schedule import OptimiserConfig, build_optimizer
from training.speed import SpeedConfig, prepare


def test_dense_parts_are_compiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", partial(real, backend=count, fullgraph=True))
    plain, batch = tiny_model(jittered_config()), hybrid_batch()
    fast = copy.deepcopy(plain)
    prepare(fast.search, SpeedConfig(compile=True))
    assert list(fast.state_dict()) == list(plain.state_dict())
    losses = [
        {n: v.item() for n, v in model(batch, model.denominators([batch]), 1).losses.items()}
        for model in (plain, fast)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)
    assert len(graphs) == 6  # three parts, for scenes and for canvases


def test_parts_that_wait_for_other_ranks_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda forward, **_: compiled.append(forward) or forward)
    monkeypatch.setattr("training.speed.world_size", lambda: 2)
    prepare(tiny_model().search, SpeedConfig(compile=True))
    assert len(compiled) == 1  # the RPN head has no norms


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
