"""Two augmented views of an image: parameters drawn once, applied in one of three arithmetics.

exact      torchvision's arithmetic on faster ground: antialiased resize, colour steps by OpenCV
fast       linear resize, all colour steps as one 3x4 matrix: hue turns in YIQ, nothing clips between
reference  torchvision v2, for tests and comparisons; a tenth of the speed
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torchvision.transforms.v2 import functional as tv

from pipeline.batch import FILL_RGB
from pipeline.config import Config
from pipeline.decode import Pixels
from pipeline.keyed import Draws
from pipeline.views import Boxes, Crop, GridCrop, Range, Size, Thresholds

BLUR_KERNEL = 9
LUMA = np.array([0.299, 0.587, 0.114])
RGB_TO_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(Config):
    """What makes two views of an image differ. Colour is identity evidence, so its jitter is weak."""

    mode: Literal["exact", "fast", "reference"] = "exact"
    """The arithmetic: exact as torchvision's, fast with one colour matrix, reference by torchvision."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    scene_scale: Range = (0.8, 1.5)
    """Size of a scene against the one that just fits the view; above 1 a part of it is shown."""
    canvas_side: Range = (0.6, 1.0)
    """Sides of a canvas's window over those of the canvas; widened until it holds the whole box."""
    jitter: Share = 0.5
    """Probability of brightness, contrast, saturation and hue changing."""
    brightness: Strength = 0.2
    """Factor from 1 - x to 1 + x."""
    contrast: Strength = 0.2
    """Factor from 1 - x to 1 + x."""
    saturation: Strength = 0.2
    """Factor from 1 - x to 1 + x."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Shift of at most this part of the colour circle."""
    grey: Share = 0.2
    """Probability of losing all colour."""
    blur: Share = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: Range = (0.1, 2.0)
    """Its sigma in pixels of the view."""
    erase: Share = 0.5
    """Probability, for each person that fits for matching, of losing a rectangle."""
    erase_area: Range = (0.02, 0.4)
    """Its share of the person's box."""
    match_visible: Share = 0.7
    """Share of a person's box that must be in the view for re-ID."""
    detect_visible: Share = 0.3
    """Share below which the person is ignored; between the two it is a positive of detection only."""
    match_height: Annotated[float, Field(ge=0)] = 24.0
    """Height in pixels of the view below which a person is of no use for re-ID."""

    @model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        highest = {"canvas_side": 1.0, "erase_area": 1.0}
        for name in ("scene_scale", "canvas_side", "blur_sigma", "erase_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= highest.get(name, math.inf):
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high")
        return self

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.match_visible, self.detect_visible, self.match_height)


@dataclass(frozen=True)
class Colour:
    """Torchvision's factors; these values change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False


@dataclass(frozen=True)
class Erasure:
    """A rectangle in units of a person's box."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Recipe:
    """All that is random about a view, whatever the mode."""

    crop: Crop
    flip: bool
    colour: Colour
    blur_sigma: float
    """0: no blur."""
    erasures: tuple[Erasure | None, ...]
    """For each person."""


def draw_recipe(config: AugmentConfig, crop: Crop, persons: int, draws: Draws) -> Recipe:
    return Recipe(
        crop=crop,
        flip=draws.chance(config.flip),
        colour=_draw_colour(config, draws),
        blur_sigma=draws.chance(config.blur) * draws.uniform(*config.blur_sigma),
        erasures=tuple(_draw_erasure(config, draws) for _ in range(persons)),
    )


def render(image: Pixels, crop: GridCrop, recipe: Recipe, mode: str) -> Pixels:
    """The content of a view, (height, width, 3), without erasures."""
    return MODES[mode](image[crop.y1 : crop.y2, crop.x1 : crop.x2], crop.size, recipe)


def erase(content: Pixels, boxes: Boxes, erasures: tuple[Erasure | None, ...]) -> None:
    """Paints over a part of each box, in place; boxes are those of the view."""
    for (x1, y1, x2, y2), part in zip(boxes, erasures, strict=True):
        if part is not None:
            left, top = x1 + part.x * (x2 - x1), y1 + part.y * (y2 - y1)
            right, bottom = left + part.width * (x2 - x1), top + part.height * (y2 - y1)
            content[round(top) : round(bottom), round(left) : round(right)] = FILL_RGB


def _draw_colour(config: AugmentConfig, draws: Draws) -> Colour:
    jitter = draws.chance(config.jitter)

    def factor(strength: float) -> float:
        drawn = draws.uniform(1 - strength, 1 + strength)
        return drawn if jitter else 1.0

    return Colour(
        brightness=factor(config.brightness),
        contrast=factor(config.contrast),
        saturation=factor(config.saturation),
        hue=jitter * draws.uniform(-config.hue, config.hue),
        grey=draws.chance(config.grey),
    )


def _draw_erasure(config: AugmentConfig, draws: Draws) -> Erasure | None:
    chosen = draws.chance(config.erase)
    area = draws.uniform(*config.erase_area)
    # Neither side is longer than the box's, and their product is the area.
    width = area ** draws.uniform()
    height = area / width
    part = Erasure(draws.uniform(0, 1 - width), draws.uniform(0, 1 - height), width, height)
    return part if chosen else None


def _render_exact(window: Pixels, size: Size, recipe: Recipe) -> Pixels:
    content = _jitter(_flip(_resize_antialiased(window, size), recipe.flip), recipe.colour)
    return _blur(_greyed(content) if recipe.colour.grey else content, recipe.blur_sigma)


def _jitter(content: Pixels, colour: Colour) -> Pixels:
    levels = np.arange(256.0)
    if colour.brightness != 1:
        content = _pixels(cv2.LUT(content, _truncate(colour.brightness * levels)))
    if colour.contrast != 1:
        mean = cv2.mean(cv2.cvtColor(content, cv2.COLOR_RGB2GRAY))[0]
        table = _truncate(colour.contrast * levels + (1 - colour.contrast) * mean)
        content = _pixels(cv2.LUT(content, table))
    if colour.saturation != 1:
        keep = colour.saturation
        content = _pixels(cv2.addWeighted(content, keep, _greyed(content), 1 - keep, 0))
    if colour.hue:
        hsv = _pixels(cv2.cvtColor(content, cv2.COLOR_RGB2HSV_FULL))
        hsv[..., 0] += np.uint8(round(colour.hue * 256) % 256)
        content = _pixels(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))
    return content


def _render_fast(window: Pixels, size: Size, recipe: Recipe) -> Pixels:
    resized = cv2.resize(window, (size.width, size.height), interpolation=cv2.INTER_LINEAR)
    content = _flip(_pixels(resized), recipe.flip)
    if recipe.colour != Colour():
        matrix = _colour_matrix(recipe.colour, cv2.mean(content)[:3])
        content = _pixels(cv2.transform(content, matrix))
    return _blur(content, recipe.blur_sigma)


def _render_reference(window: Pixels, size: Size, recipe: Recipe) -> Pixels:
    image = torch.from_numpy(np.ascontiguousarray(window)).permute(2, 0, 1)
    image = tv.resize(image, [size.height, size.width], antialias=True)
    if recipe.flip:
        image = tv.horizontal_flip(image)
    colour = recipe.colour
    image = tv.adjust_brightness(image, colour.brightness)
    image = tv.adjust_contrast(image, colour.contrast)
    image = tv.adjust_saturation(image, colour.saturation)
    image = tv.adjust_hue(image, colour.hue)
    if colour.grey:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if recipe.blur_sigma:
        image = tv.gaussian_blur(image, [BLUR_KERNEL] * 2, [recipe.blur_sigma] * 2)
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


MODES: dict[str, Callable[[Pixels, Size, Recipe], Pixels]] = {
    "exact": _render_exact,
    "fast": _render_fast,
    "reference": _render_reference,
}


def _resize_antialiased(window: Pixels, size: Size) -> Pixels:
    """Torchvision's antialiased bilinear resize, channels-last: the layout of its fastest kernel."""
    image = torch.from_numpy(np.ascontiguousarray(window))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, tuple(size), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _flip(content: Pixels, flip: bool) -> Pixels:
    return _pixels(cv2.flip(content, 1)) if flip else content


def _blur(content: Pixels, sigma: float) -> Pixels:
    if not sigma:
        return content
    return _pixels(cv2.GaussianBlur(content, (BLUR_KERNEL, BLUR_KERNEL), sigma))


def _greyed(content: Pixels) -> Pixels:
    return _pixels(cv2.cvtColor(cv2.cvtColor(content, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def _truncate(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """As torchvision casts: towards zero."""
    return levels.clip(0, 255).astype(np.uint8)


def _colour_matrix(colour: Colour, mean_rgb: tuple[float, ...]) -> NDArray[np.float64]:
    """(3, 4): brightness, contrast about the mean grey, saturation, hue, grey, in this order."""
    gain = colour.brightness * colour.contrast
    offset = (1 - colour.contrast) * colour.brightness * float(LUMA @ np.array(mean_rgb))
    to_grey = np.tile(LUMA, (3, 1))
    saturate = colour.saturation * np.eye(3) + (1 - colour.saturation) * to_grey
    cos, sin = np.cos(2 * np.pi * colour.hue), np.sin(2 * np.pi * colour.hue)
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])  # from red to yellow, as HSV
    mixing = np.linalg.inv(RGB_TO_YIQ) @ turn @ RGB_TO_YIQ @ saturate
    if colour.grey:
        mixing = to_grey @ mixing
    return np.hstack([gain * mixing, offset * mixing.sum(1, keepdims=True)])


def _pixels(image: NDArray[np.integer | np.floating]) -> Pixels:
    """Tells the type checker what OpenCV's stubs leave open."""
    return image.astype(np.uint8, copy=False)
