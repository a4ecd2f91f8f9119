"""The geometry of a view: which part of an image it shows, and what becomes of the boxes.

Shapes: P persons of the image. Boxes are xyxy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Use
from pipeline.keyed import Draws
from pipeline.rendering.decode import MOST_HALVINGS

Boxes = NDArray[np.float64]
Range = tuple[float, float]

SMALLEST_SIDE = 1.0
"""Pixels of a view: what is thinner cannot be regressed, so it is ignored."""


class Size(NamedTuple):
    height: int
    width: int


@dataclass(frozen=True)
class Crop:
    """A window of the source image and the size that it gets in the view."""

    window: tuple[float, float, float, float]
    """xyxy in pixels of the source."""
    size: Size

    def shrink(self) -> float:
        """How many source pixels a pixel of the view stands for, along the side where it is fewer."""
        x1, y1, x2, y2 = self.window
        return min((x2 - x1) / self.size.width, (y2 - y1) / self.size.height)


@dataclass(frozen=True)
class GridCrop:
    """A crop in whole pixels of the image as decoded, at 1/2^halvings of the source."""

    x1: int
    y1: int
    x2: int
    y2: int
    size: Size
    halvings: int


@dataclass(frozen=True)
class Thresholds:
    """When a person in a view is good for what; shares are of the part of the box inside the image."""

    match: float
    detect: float
    match_height: float
    """Pixels of the view."""


def scene_crop(image: Size, view: Size, scale: Range, draws: Draws) -> Crop:
    """A random part of a scene, aspect kept: at scale 1 the whole scene just fits into the view."""
    fit = min(view.height / image.height, view.width / image.width)
    factor = fit * math.exp(draws.uniform(math.log(scale[0]), math.log(scale[1])))
    size = Size(
        max(1, min(view.height, round(image.height * factor))),
        max(1, min(view.width, round(image.width * factor))),
    )
    height = min(float(image.height), size.height / factor)
    width = min(float(image.width), size.width / factor)
    x1 = draws.uniform(0, image.width - width)
    y1 = draws.uniform(0, image.height - height)
    return Crop((x1, y1, x1 + width, y1 + height), size)


def canvas_crop(image: Size, boxes: Boxes, view: Size, side: Range, draws: Draws) -> Crop:
    """A random window of a canvas, of its aspect, with every box whole; it fills the view."""
    inside = clip(boxes, (0, 0, image.width, image.height))
    left, top = inside[:, :2].min(0, initial=math.inf)
    right, bottom = inside[:, 2:].max(0, initial=0)
    needed = max((right - left) / image.width, (bottom - top) / image.height, side[0])
    share = draws.uniform(needed, max(needed, side[1]))
    width, height = share * image.width, share * image.height
    x1 = draws.uniform(max(0.0, right - width), min(left, image.width - width))
    y1 = draws.uniform(max(0.0, bottom - height), min(top, image.height - height))
    return Crop((x1, y1, x1 + width, y1 + height), view)


def halvings(crops: Sequence[Crop]) -> int:
    """How often the source can be halved so that no view has to enlarge it."""
    shrink = min(crop.shrink() for crop in crops)
    return min(MOST_HALVINGS, max(0, int(math.log2(shrink))))


def on_grid(crop: Crop, decoded: Size, halved: int) -> GridCrop:
    """The crop in whole decoded pixels, rounded outwards so that what it held, it holds."""
    x1, y1, x2, y2 = (side / (1 << halved) for side in crop.window)
    left = min(math.floor(x1), decoded.width - 1)
    top = min(math.floor(y1), decoded.height - 1)
    right = max(left + 1, min(math.ceil(x2), decoded.width))
    bottom = max(top + 1, min(math.ceil(y2), decoded.height))
    return GridCrop(left, top, right, bottom, crop.size, halved)


def place_boxes(
    boxes: Boxes,
    ignore: NDArray[np.bool_],
    image: Size,
    crop: GridCrop,
    flip: bool,
    thresholds: Thresholds,
) -> tuple[Boxes, NDArray[np.int64]]:
    """(P, 4) boxes in pixels of the view, clipped to its content, and (P,) their `Use`."""
    inside = clip(boxes, (0, 0, image.width, image.height)) / (1 << crop.halvings)
    seen = clip(inside, (crop.x1, crop.y1, crop.x2, crop.y2))
    whole = _area(inside)
    share = np.divide(_area(seen), whole, out=np.zeros_like(whole), where=whole > 0)

    across = crop.size.width / (crop.x2 - crop.x1)
    down = crop.size.height / (crop.y2 - crop.y1)
    placed = (seen - np.array([crop.x1, crop.y1] * 2)) * np.array([across, down] * 2)
    if flip:
        placed[:, [0, 2]] = crop.size.width - placed[:, [2, 0]]
    placed = clip(placed, (0, 0, crop.size.width, crop.size.height))  # rounding may leave it
    use = _judge(share, placed, ignore, thresholds)
    placed[use == Use.ABSENT] = 0
    return placed, use


def clip(boxes: Boxes, window: tuple[float, float, float, float]) -> Boxes:
    """The boxes inside `window`; one that lies outside shrinks to a line on its border."""
    x1, y1, x2, y2 = window
    low, high = np.array([x1, y1, x1, y1], float), np.array([x2, y2, x2, y2], float)
    return np.minimum(np.maximum(boxes, low), high)


def _area(boxes: Boxes) -> NDArray[np.float64]:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)


def _judge(
    share: NDArray[np.float64], placed: Boxes, ignore: NDArray[np.bool_], thresholds: Thresholds
) -> NDArray[np.int64]:
    sides = placed[:, 2:] - placed[:, :2]
    use = np.full(len(placed), int(Use.DETECT), np.int64)
    use[(share >= thresholds.match) & (sides[:, 1] >= thresholds.match_height)] = Use.MATCH
    use[ignore | (share < thresholds.detect) | (sides < SMALLEST_SIDE).any(1)] = Use.IGNORE
    use[share <= 0] = Use.ABSENT
    return use
