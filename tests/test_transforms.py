"""Transforms of the user: where they come, what they may return, and that they move nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.batch import FILL_RGB
from pipeline.errors import UserError
from pipeline.keyed import Draws
from pipeline.rendering.augment import AugmentConfig
from pipeline.rendering.decode import Pixels
from pipeline.rendering.geometry import Size
from pipeline.rendering.transforms import TRANSFORMS
from tests.pictures import psnr, render_batch, sample, textured

VIEW = Size(96, 128)


def views(config: AugmentConfig) -> list[torch.Tensor]:
    stored = sample(textured(150, 220, 0), [(20, 10, 120, 140)])
    images = render_batch([(stored, stored)], VIEW, config, first_seed=4)
    return [view.pixels for view in images.views]


@pytest.mark.parametrize("mode", ["exact", "fast", "reference"])
def test_a_transform_comes_before_erasing_and_touches_no_padding(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def invert(content: Pixels, draws: Draws) -> Pixels:
        content[:] = 255 - content
        return content

    monkeypatch.setitem(TRANSFORMS, "invert", invert)
    settings: dict[str, Any] = {"mode": mode, "scene_scale": (0.7, 0.7), "erase": 1}
    fill = torch.tensor(FILL_RGB, dtype=torch.uint8)
    plain = views(AugmentConfig(**settings))
    inverted = views(AugmentConfig(**settings, transform="invert"))
    for before, after in zip(plain, inverted, strict=True):
        filled = (before == fill).all(-1, keepdim=True)
        assert filled[:, :67, :89].any()
        assert torch.equal(after, torch.where(filled, fill, 255 - before))


def test_its_draws_come_after_all_others() -> None:
    """So that without it, or with another, nothing else changes."""
    content = textured(60, 80, 0)
    quality = {len(np.unique(TRANSFORMS["recompress"](content, Draws(seed)))) for seed in range(4)}
    assert len(quality) > 1
    for plain, coded in zip(views(AugmentConfig()), views(AugmentConfig(transform="recompress"))):
        assert not torch.equal(plain, coded)
        assert psnr(plain.numpy(), coded.numpy()) > 25


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (lambda content, draws: content[:-1], r"uint8 of shape \(\d+, \d+, 3\) for a view"),
        (lambda content, draws: content.astype(float), "float64 of shape"),
        (lambda content, draws: None, "returned NoneType"),
    ],
)
def test_what_is_no_content_is_refused(
    result: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRANSFORMS, "wrong", result)
    with pytest.raises(UserError, match=f"the transform `wrong` .*{said}"):
        views(AugmentConfig(transform="wrong"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"transform": "recompres"}, "did you mean recompress?"),
        ({"transform": "zzz"}, "known: recompress"),
        ({"transform": "recompress", "mode": "device"}, "wants pixels on the CPU"),
    ],
)
def test_unknown_names_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AugmentConfig(**settings)
