"""The modes: boxes follow the picture in all of them, and their arithmetic is torchvision's or near it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch import FILL_RGB, Images, Use
from pipeline.rendering.augment import AugmentConfig, Colour, Recipe
from pipeline.rendering.decode import Pixels
from pipeline.rendering.geometry import Crop, GridCrop, Size
from pipeline.rendering.modes import BLUR_KERNEL, blur_taps, render
from pipeline.rendering.renderer import TaskName
from tests.pictures import psnr, render_batch, sample, textured

MODES = ("exact", "fast", "reference", "device")
VIEW = Size(120, 160)
STILL: dict[str, Any] = {"jitter": 0, "grey": 0, "blur": 0, "erase": 0}
"""Settings that move things and change nothing else."""


def marked(image: Size, box: tuple[int, int, int, int]) -> Pixels:
    """A dark image with a bright box."""
    pixels = np.full((*image, 3), 20, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 230
    return pixels


def bright_box(pixels: Pixels) -> np.ndarray:
    rows, columns = np.nonzero(pixels.min(2) > 125)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["detection", "reid"])
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(60, 420),
    width=st.integers(60, 420),
    corner=st.tuples(st.floats(-0.3, 0.9), st.floats(-0.3, 0.9)),
    side=st.tuples(st.integers(24, 90), st.integers(24, 90)),
    scale=st.sampled_from([(0.3, 0.5), (0.8, 1.5), (2.0, 3.0)]),
    seed=st.integers(0, 10_000),
)
def test_a_marker_lies_where_its_box_says(
    mode: Any,
    task: TaskName,
    height: int,
    width: int,
    corner: tuple[float, float],
    side: tuple[int, int],
    scale: tuple[float, float],
    seed: int,
) -> None:
    """Also of a box that is partly outside of the image, in halved images, flipped or not."""
    x1, y1 = int(corner[0] * width), int(corner[1] * height)
    box = (x1, y1, x1 + side[0], y1 + side[1])
    inside = (max(x1, 0), max(y1, 0), min(box[2], width), min(box[3], height))
    stored = sample(marked(Size(height, width), inside), [box], task=task)
    config = AugmentConfig(mode=mode, scene_scale=scale, canvas_side=(0.4, 1.0), **STILL)
    images = render_batch([(stored, stored)], VIEW, config, task, seed).to("cpu")
    stretch = max(VIEW.height / height, VIEW.width / width)
    enlarged = scale[1] * stretch if task == "detection" else stretch / config.canvas_side[0]
    for view in images.views:
        pixels, (h, w) = view.pixels[0].numpy(), view.valid[0].tolist()
        assert (pixels[h:] == FILL_RGB).all()
        assert (pixels[:, w:] == FILL_RGB).all()
        placed, use = view.boxes[0].numpy(), int(view.use[0])
        assert (placed >= 0).all()
        assert (placed <= [w, h, w, h]).all()
        if use == Use.ABSENT or min(placed[2:] - placed[:2]) < 4:
            continue
        # The marker ends in the middle of a pixel of the view, or of a pixel that was enlarged.
        assert np.abs(bright_box(pixels[:h, :w]) - placed).max() <= 1 + 0.5 * max(enlarged, 1)
        if task == "reid":
            assert use == Use.MATCH or placed[3] - placed[1] < config.match_height


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), task=st.sampled_from(["detection", "reid"]))
def test_all_modes_place_the_same_boxes(seed: int, task: TaskName) -> None:
    stored = sample(textured(200, 240, 1), [(20, 30, 60, 150), (150, -20, 260, 90)], task=task)
    seen: list[Images] = [
        render_batch([(stored, stored)], VIEW, AugmentConfig(mode=mode), task, seed)  # type: ignore[arg-type]
        for mode in MODES
    ]
    for other in seen[1:]:
        for ours, theirs in zip(seen[0].views, other.views, strict=True):
            for name in ("boxes", "use", "valid"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))


RECIPES = {  # colour, blur, least PSNR of exact and of fast
    "resize": (Colour(), 0.0, 90, 39),
    "brighter": (Colour(brightness=1.2), 0.0, 90, 37.5),
    "darker": (Colour(brightness=0.8), 0.0, 90, 40.5),
    "contrast": (Colour(contrast=0.8), 0.0, 90, 40.5),
    "saturation": (Colour(saturation=0.8), 0.0, 65, 39.5),
    "grey": (Colour(grey=True), 0.0, 60, 42),
    "faint blur": (Colour(), 0.28, 90, 39),
    "small blur": (Colour(), 0.5, 60, 43.5),
    "blur": (Colour(), 0.8, 60, 51),
    "larger blur": (Colour(), 1.1, 60, 54),
    "largest blur": (Colour(), 2.0, 60, 56),
    "all but hue": (Colour(0.85, 1.15, 1.2), 1.0, 60, 46),
    "all and grey": (Colour(0.85, 1.15, 1.2, grey=True), 1.0, 60, 42.5),
    "hue": (Colour(hue=0.1), 0.0, 48, 25),
    "all": (Colour(0.85, 1.15, 1.2, -0.05), 1.0, 53, 30),
}
"""exact is off by a level here and there; HSV in 8 bits and fast's aliases and own hue cost more."""


@pytest.mark.parametrize("name", RECIPES)
def test_modes_agree_with_torchvision(name: str) -> None:
    colour, sigma, exact, fast = RECIPES[name]
    crop = GridCrop(10, 20, 300, 230, Size(110, 150), 0)
    recipe = Recipe(Crop((10, 20, 300, 230), crop.size), True, colour, sigma, ())
    reference, *others = (np.empty((*crop.size, 3), np.uint8) for _ in range(3))
    image = textured(240, 320, 5)
    render(image, crop, recipe, "reference", reference)
    for mode, least, content in zip(("exact", "fast"), (exact, fast), others, strict=True):
        render(image, crop, recipe, mode, content)
        assert psnr(content, reference) >= least


@pytest.mark.parametrize("mode", MODES[:3])
def test_a_view_may_lie_in_a_wider_buffer(mode: str) -> None:
    """Every step writes into rows that are longer than the content, and into nothing beside it."""
    crop = GridCrop(0, 0, 320, 240, Size(90, 130), 0)
    recipe = Recipe(Crop((0, 0, 320, 240), crop.size), True, Colour(1.1, 0.9, 1.2), 0.7, ())
    alone, wide = np.empty((90, 130, 3), np.uint8), np.full((100, 140, 3), 7, np.uint8)
    render(textured(240, 320, 2), crop, recipe, mode, alone)
    render(textured(240, 320, 2), crop, recipe, mode, wide[:90, :130])
    assert np.array_equal(wide[:90, :130], alone)
    assert (wide[90:] == 7).all()
    assert (wide[:, 130:] == 7).all()


@pytest.mark.parametrize("mode", MODES[:3])
@pytest.mark.parametrize("size", [Size(1, 1), Size(1, 60), Size(60, 1), Size(3, 60)])
def test_content_may_be_thinner_than_the_blur(mode: str, size: Size) -> None:
    """What is left of a panorama, say."""
    recipe = Recipe(Crop((0, 0, 320, 240), size), True, Colour(1.1, 0.9, 1.2), 2.0, ())
    content = np.zeros((*size, 3), np.uint8)
    white = np.full((240, 320, 3), 200, np.uint8)
    render(white, GridCrop(0, 0, 320, 240, size, 0), recipe, mode, content)
    assert (content > 150).all()


def test_small_sigmas_need_fewer_taps() -> None:
    taps = [blur_taps(sigma) for sigma in (0, 0.1, 0.3, 0.6, 0.9, 1.2, 2.0)]
    assert taps == [1, 1, 3, 5, 7, 9, BLUR_KERNEL]
