"""The CPU's half of mode `device`: what views show of an image, resized once, and how to go on.

A base lies at the top left of a buffer of fixed size, so that batches have one shape.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.rendering.augment import NO_COLOUR_CHANGE, Recipe
from pipeline.rendering.decode import Pixels
from pipeline.rendering.device_views import Warps
from pipeline.rendering.geometry import GridCrop, Size
from pipeline.rendering.modes import BLUR_KERNEL, blur_taps, colour_matrix, mean_rgb


class Base(NamedTuple):
    """A part of a decoded image, resized."""

    x1: int
    """Its corner in the decoded image."""
    y1: int
    stretch_x: float
    """Its pixels for one of the decoded image."""
    stretch_y: float
    pixels: Pixels


class Warp(NamedTuple):
    """How a view comes out of its base: one image's part of `Warps`, which has its units."""

    across: tuple[float, float, float]
    down: tuple[float, float, float]
    colour: NDArray[np.float64]
    blur: NDArray[np.float64]
    erased: NDArray[np.int64]

    @classmethod
    def of(cls, base: Base, crop: GridCrop, recipe: Recipe, erased: NDArray[np.int64]) -> "Warp":
        height, width = base.pixels.shape[:2]
        x1, x2 = ((x - base.x1) * base.stretch_x for x in (crop.x1, crop.x2))
        y1, y2 = ((y - base.y1) * base.stretch_y for y in (crop.y1, crop.y2))
        return cls(
            across=_line(x1, x2, crop.size.width, width, recipe.flip),
            down=_line(y1, y2, crop.size.height, height, False),
            colour=_colour(base.pixels[int(y1) : round(y2), int(x1) : round(x2)], recipe),
            blur=_weights(recipe.blur_sigma),
            erased=erased,
        )


def buffer_size(view: Size, zoom: float) -> Size:
    """Room for all that views can show of one image: `zoom` times as much as one of them, each way."""
    return Size(math.ceil(view.height * zoom), math.ceil(view.width * zoom))


def lay_base(image: Pixels, crops: Sequence[GridCrop], buffer: Pixels) -> Base:
    """Resizes what `crops` show into the buffer, as large as one of them shows it, never enlarged."""
    x1, y1 = min(crop.x1 for crop in crops), min(crop.y1 for crop in crops)
    x2, y2 = max(crop.x2 for crop in crops), max(crop.y2 for crop in crops)
    room_y, room_x = buffer.shape[:2]
    stretch_x = max(crop.size.width / (crop.x2 - crop.x1) for crop in crops)
    stretch_y = max(crop.size.height / (crop.y2 - crop.y1) for crop in crops)
    width = _length(x2 - x1, stretch_x, room_x)
    height = _length(y2 - y1, stretch_y, room_y)
    pixels = buffer[:height, :width]
    window = image[y1:y2, x1:x2]
    cv2.resize(window, (width, height), dst=pixels, interpolation=cv2.INTER_LINEAR)
    return Base(x1, y1, width / (x2 - x1), height / (y2 - y1), pixels)


def join_warps(warps: Sequence[Warp]) -> Warps:
    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array([getattr(one, name) for one in warps], np.float32))

    return Warps(
        across=joined("across"),
        down=joined("down"),
        colour=joined("colour"),
        blur=joined("blur"),
        erased=torch.from_numpy(np.concatenate([one.erased for one in warps])),
    )


def _length(decoded: int, stretch: float, room: int) -> int:
    return min(room, decoded, max(1, round(decoded * stretch)))


def _line(
    start: float, end: float, pixels: int, length: int, flip: bool
) -> tuple[float, float, float]:
    """Step, start and last place for `pixels` of a view that show a base of `length` from start to end."""
    step = (end - start) / pixels
    first = start + 0.5 * step - 0.5
    return (-step, end - 0.5 * step - 0.5, length - 1) if flip else (step, first, length - 1)


def _colour(shown: Pixels, recipe: Recipe) -> NDArray[np.float64]:
    if recipe.colour == NO_COLOUR_CHANGE:
        return np.eye(3, 4)
    return colour_matrix(recipe.colour, mean_rgb(shown))


def _weights(sigma: float) -> NDArray[np.float64]:
    """(BLUR_KERNEL,)"""
    taps = blur_taps(sigma)
    kernel = cv2.getGaussianKernel(taps, sigma or 1.0)[:, 0]
    return np.pad(kernel, (BLUR_KERNEL - taps) // 2)
