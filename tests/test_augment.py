"""Two views: what is drawn, what a window shows, and every person gets the right use."""

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.batch import FILL_RGB, Use
from pipeline.keyed import Draws
from pipeline.rendering.augment import AugmentConfig, Erasure, draw_recipe, erased_part, fill
from pipeline.rendering.decode import DecodeError, decode, image_size
from pipeline.rendering.geometry import (
    Crop,
    Size,
    Thresholds,
    canvas_crop,
    halvings,
    on_grid,
    place_boxes,
    scene_crop,
)
from tests.pictures import psnr
from tests.shardset import picture

THRESHOLDS = Thresholds(match=0.7, detect=0.3, match_height=8)
VIEW = Size(120, 160)
MODES = ("exact", "fast", "reference", "device")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0, 60),
    st.floats(0, 90),
    st.floats(4, 64),
    st.floats(4, 96),
)
def test_a_canvas_window_holds_the_whole_box(
    seed: int, x: float, y: float, width: float, height: float
) -> None:
    image, box = Size(96, 64), np.array([[x, y, x + width, y + height]])
    crop = canvas_crop(image, box, Size(48, 32), (0.3, 1.0), Draws(seed))
    grid = on_grid(crop, image, 0)
    inside = np.clip(box[0], 0, [64, 96, 64, 96])
    assert grid.x1 <= inside[0] + 1e-6
    assert grid.y1 <= inside[1] + 1e-6
    assert grid.x2 >= inside[2] - 1e-6
    assert grid.y2 >= inside[3] - 1e-6
    assert crop.size == (48, 32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(16, 500), st.integers(16, 500))
def test_a_scene_keeps_its_aspect_and_fits_the_view(seed: int, height: int, width: int) -> None:
    crop = scene_crop(Size(height, width), VIEW, (0.7, 2.0), Draws(seed))
    x1, y1, x2, y2 = crop.window
    assert crop.size.height <= VIEW.height
    assert crop.size.width <= VIEW.width
    assert -1e-6 <= x1 < x2 <= width + 1e-6
    assert -1e-6 <= y1 < y2 <= height + 1e-6
    horizontal, vertical = crop.size.width / (x2 - x1), crop.size.height / (y2 - y1)
    assert abs(horizontal / vertical - 1) <= 1 / min(crop.size)


def test_use_depends_on_what_is_left_of_the_part_inside_the_image() -> None:
    image = Size(100, 100)
    grid = on_grid(Crop((0, 0, 50, 100), Size(100, 50)), image, 0)
    cases = [
        ((10, 10, 40, 90), False, Use.MATCH),  # whole
        ((10, 10, 40, 90), True, Use.IGNORE),  # a region to ignore
        ((20, 10, 60, 90), False, Use.MATCH),  # 75 % of it
        ((40, 10, 60, 90), False, Use.DETECT),  # 50 %
        ((45, 10, 85, 90), False, Use.IGNORE),  # 12 %
        ((60, 10, 80, 90), False, Use.ABSENT),  # none
        ((60, 10, 80, 90), True, Use.ABSENT),
        ((-60, 10, 20, 90), False, Use.MATCH),  # what lies outside of the image does not count
        ((10, 10, 40, 17), False, Use.DETECT),  # too low for re-ID
        ((10, 10, 10.5, 90), False, Use.IGNORE),  # too thin for anything
        ((120, 10, 140, 90), False, Use.ABSENT),  # never was in the image
        ((30, 30, 30, 30), False, Use.ABSENT),  # degenerate
    ]
    boxes = np.array([box for box, _, _ in cases], float)
    ignore = np.array([flag for _, flag, _ in cases])
    placed, use = place_boxes(boxes, ignore, image, grid, False, THRESHOLDS)
    assert use.tolist() == [expected for _, _, expected in cases]
    assert placed.min() >= 0
    assert placed[:, 2].max() <= 50
    assert not placed[use == Use.ABSENT].any()


def test_the_same_recipe_whatever_the_mode() -> None:
    crop = Crop((0, 0, 10, 10), Size(10, 10))
    drawn = [draw_recipe(AugmentConfig(mode=mode), crop, 3, Draws(1, "x")) for mode in MODES]  # type: ignore[arg-type]
    assert all(recipe == drawn[0] for recipe in drawn)
    assert drawn[0] != draw_recipe(AugmentConfig(), crop, 3, Draws(2, "x"))


def test_probabilities_and_ranges_are_kept() -> None:
    config = AugmentConfig(flip=0.25, jitter=1, grey=0, blur=0.5, erase=0.5, hue=0.02)
    crop = Crop((0, 0, 10, 10), Size(10, 10))
    recipes = [draw_recipe(config, crop, 1, Draws(seed)) for seed in range(800)]
    assert 150 < sum(recipe.flip for recipe in recipes) < 250
    assert 340 < sum(recipe.blur_sigma > 0 for recipe in recipes) < 460
    assert not any(recipe.colour.grey for recipe in recipes)
    assert all(0.8 <= recipe.colour.brightness <= 1.2 for recipe in recipes)
    assert all(abs(recipe.colour.hue) <= 0.02 for recipe in recipes)
    parts = [recipe.erasures[0] for recipe in recipes if recipe.erasures[0] is not None]
    assert 340 < len(parts) < 460
    for part in parts:
        assert 0.02 <= part.width * part.height <= 0.4 + 1e-9
        assert part.x + part.width <= 1 + 1e-9
        assert part.y + part.height <= 1 + 1e-9


def test_what_is_erased_lies_inside_the_box() -> None:
    box = np.array([10.0, 10, 30, 30])
    assert erased_part(box, Erasure(0.5, 0.25, 0.5, 0.5)) == (20, 15, 30, 25)
    content = np.full((40, 40, 3), 200, np.uint8)
    fill(content, 20, 15, 30, 25)
    fill(content, 5, 5, 5, 9)
    expected = np.full((40, 40, 3), 200, np.uint8)
    expected[15:25, 20:30] = FILL_RGB
    assert np.array_equal(content, expected)


def test_draws_for_one_person_more_move_no_others() -> None:
    crop = Crop((0, 0, 10, 10), Size(10, 10))
    few, many = (draw_recipe(AugmentConfig(erase=0.7), crop, n, Draws(3)) for n in (5, 30))
    assert many.erasures[:5] == few.erasures
    assert few.erasures.count(None) < 5


def test_draws_at_once_are_those_one_by_one() -> None:
    at_once, one_by_one = Draws("a", 1), Draws("a", 1)
    assert at_once.uniforms(7) == [one_by_one.uniform() for _ in range(7)]
    assert at_once.uniform() == one_by_one.uniform()


def test_huge_sources_are_halved_no_further_than_the_view_allows() -> None:
    large = Crop((0, 0, 1600, 900), Size(200, 300))
    assert halvings((large, large)) == 2
    assert halvings((large, Crop((0, 0, 400, 300), Size(200, 300)))) == 0
    assert halvings((Crop((0, 0, 9e4, 9e4), Size(9, 9)),) * 2) == 3


def test_scaled_decoding_shows_the_same_picture() -> None:
    coded = simplejpeg.encode_jpeg(picture(401, 603, 1), 95)
    for number, shape in enumerate([(401, 603), (201, 302), (101, 151), (51, 76)]):
        image = decode(coded, "jpg", number)
        assert image.shape[:2] == shape
        enlarged = cv2.resize(image, (603, 401), interpolation=cv2.INTER_LINEAR)
        assert psnr(enlarged[16:-16, 16:-16], picture(401, 603, 1)[16:-16, 16:-16]) > 27
        assert psnr(decode(coded, "jpg", number, fast_dct=True), image) > 45


@pytest.mark.parametrize(
    ("data", "image_type", "reason"),
    [
        (b"", "jpg", "not a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "png", "not a PNG"),
        (simplejpeg.encode_jpeg(picture(64, 64, 0))[:-200], "jpg", "damaged JPEG"),
        (cv2.imencode(".png", picture(64, 64, 0))[1].tobytes()[:-200], "png", "damaged PNG"),
        (b"GIF89a", "gif", "unknown image type"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0", "png", "65536x65536"),
    ],
)
def test_damaged_images_say_what_is_wrong(data: bytes, image_type: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(data, image_type)


def test_size_comes_from_the_header() -> None:
    assert image_size(simplejpeg.encode_jpeg(picture(30, 50, 0)), "jpg") == (30, 50)
    assert image_size(cv2.imencode(".png", picture(30, 50, 0))[1].tobytes(), "png") == (30, 50)


@pytest.mark.parametrize(
    "setting",
    [
        {"scene_scale": (2, 1)},
        {"scene_scale": (1, float("inf"))},
        {"canvas_side": (0.5, 1.5)},
        {"blur_sigma": (0, 1)},
    ],
)
def test_ranges_are_checked(setting: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**setting)  # type: ignore[arg-type]
