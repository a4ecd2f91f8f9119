"""Canvases: placed by key alone, the box where the crop is, no crop blown up or blurred away."""

import cv2
import numpy as np
import pytest
import simplejpeg

from pipeline.annotation import FILL_RGB
from pipeline.errors import UserError
from sharding.canvas import CanvasConfig, place_crop, resize
from sharding.recipe import parse_settings

CONFIG = CanvasConfig(size=(128, 96), ratio=(1.0, 3.0), quality=95)
METHODS = ("expand_resize", "random_paste")


def red_crop(height: int = 60, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), (220, 30, 40), np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_bytes_depend_on_seed_key_and_variant_alone(method: str) -> None:
    config = CONFIG.model_copy(update={"method": method})
    first = place_crop(red_crop(), config, 1, "a/b/c", 0)
    place_crop(red_crop(), config, 5, "another", 2)
    assert place_crop(red_crop(), config, 1, "a/b/c", 0) == first
    others = [(2, "a/b/c", 0), (1, "a/b/d", 0), (1, "a/b/c", 1)]
    assert all(place_crop(red_crop(), config, *other).box != first.box for other in others)


@pytest.mark.parametrize("method", METHODS)
def test_box_is_where_the_crop_is(method: str) -> None:
    config = CONFIG.model_copy(update={"method": method})
    for number in range(20):
        placed = place_crop(red_crop(), config, 0, f"key{number}", 0)
        image = simplejpeg.decode_jpeg(placed.jpeg)
        assert image.shape == (128, 96, 3)
        is_crop = np.abs(image.astype(int) - (220, 30, 40)).sum(axis=2) < 90
        is_fill = np.abs(image.astype(int) - FILL_RGB).sum(axis=2) < 90
        x1, y1, x2, y2 = (int(side) for side in placed.box)
        inside = np.zeros((128, 96), bool)
        inside[y1:y2, x1:x2] = True
        edge = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9))) != cv2.erode(
            inside.astype(np.uint8), np.ones((9, 9)), borderValue=0
        )
        assert is_crop[inside & ~edge].all()
        assert is_fill[~inside & ~edge].all()
        assert placed.canvas.offset == placed.box[:2]


def test_ratio_is_drawn_from_its_range_with_the_sides_close_together() -> None:
    ratios = np.array(
        [place_crop(red_crop(), CONFIG, 0, f"{n}", 0).canvas.ratio for n in range(200)]
    )
    assert (ratios >= 1).all()
    assert (ratios <= 3 * (4 / 3) ** 0.5 + 0.1).all()
    assert 1.8 < ratios.mean() < 2.2
    assert ratios.std() > 0.4
    skew = ratios[:, 0] / ratios[:, 1]
    assert (skew < 4 / 3 * 1.05).all()
    assert (skew > 3 / 4 / 1.05).all()


def test_independent_sides_are_independent() -> None:
    config = CONFIG.model_copy(update={"independent": True})
    ratios = np.array(
        [place_crop(red_crop(), config, 0, f"{n}", 0).canvas.ratio for n in range(200)]
    )
    assert abs(np.corrcoef(ratios.T)[0, 1]) < 0.2


def test_a_tiny_crop_is_not_blown_up() -> None:
    for number in range(20):
        placed = place_crop(red_crop(10, 5), CONFIG, 0, f"{number}", 0)
        x1, y1, x2, y2 = placed.box
        assert x2 - x1 <= 5 * 8
        assert y2 - y1 <= 10 * 8


def test_random_paste_keeps_the_crops_size_or_shape() -> None:
    config = CONFIG.model_copy(update={"method": "random_paste"})
    x1, y1, x2, y2 = place_crop(red_crop(), config, 0, "a", 0).box
    assert (x2 - x1, y2 - y1) == (30, 60)
    x1, y1, x2, y2 = place_crop(red_crop(512, 128), config, 0, "a", 0).box
    assert (x2 - x1, y2 - y1) == (32, 128)


@pytest.mark.parametrize("size", [(37, 21), (200, 150), (90, 400), (1000, 800)])
def test_resampling_neither_shifts_nor_aliases(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / np.array(size)[:, None, None]
    smooth = np.stack([rows * 250, columns * 250, 250 - rows * 250], axis=2)
    noisy = smooth + np.random.default_rng(0).uniform(-5, 5, smooth.shape)
    resized = resize(noisy.clip(0, 255).astype(np.uint8), 60, 80)
    wanted = cv2.resize(smooth.astype(np.float32), (60, 80), interpolation=cv2.INTER_AREA)
    assert np.abs(resized - wanted).mean() < 3


@pytest.mark.parametrize(
    "setting", ["canvas.ratio=[0.5, 2]", "canvas.size=[8, 9000]", "canvas.qualty=90"]
)
def test_impossible_settings_are_refused_by_name(setting: str) -> None:
    from sharding.plan import PlanConfig

    with pytest.raises(UserError, match="canvas"):
        parse_settings(PlanConfig, [setting])
