"""Puts a re-ID crop onto a canvas, so that finding the person is a task too (paper section 3.2).

Every draw is a function of (seed, key, variant), and all resampling is fixed-point, so a canvas has the
same bytes wherever and however often it is made.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from pydantic import Field, model_validator

from pipeline.annotation import FILL_RGB, Box, Canvas
from pipeline.config import Config
from pipeline.keyed import Draws
from pipeline.rendering.decode import Pixels

cv2.setNumThreads(1)  # a task has one core; more threads would fight with the node's other tasks


class CanvasConfig(Config):
    method: Literal["expand_resize", "random_paste"] = "expand_resize"
    """`expand_resize`: crop at a random place on a canvas `ratio` times its size, then resized.
    `random_paste`: crop in its own size at a random place (the paper's ablation)."""
    size: tuple[int, int] = (512, 256)
    """Height and width of the stored canvas, in pixels."""
    ratio: tuple[float, float] = (1.0, 4.0)
    """Range of the canvas' sides over the crop's, drawn evenly; not used by `random_paste`."""
    jitter: float = Field(default=4 / 3, ge=1)
    """Most by which the two sides' ratios differ."""
    independent: bool = False
    """Draw the two sides' ratios each for itself, instead of one ratio and a jitter."""
    max_enlargement: float = Field(default=8.0, ge=1)
    """A crop so small that it would be enlarged by more gets a larger ratio."""
    quality: int = Field(default=92, ge=50, le=100)
    """Of the stored JPEG."""
    subsampling: Literal["420", "444"] = "420"
    """Of its colour. `420` takes a quarter less to write, and less to read in every epoch; crops that come as
    JPEG or from video mostly have no more. `444` keeps all."""
    variants: int = Field(default=4, ge=1, le=99)
    """Placements of each crop; epoch e reads variant e mod variants."""

    @model_validator(mode="after")
    def _check(self) -> "CanvasConfig":
        if not 1 <= self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio must be [low, high] with 1 <= low <= high")
        if not all(16 <= side <= 4096 for side in self.size):
            raise ValueError("size must be [height, width] of 16 to 4096 pixels")
        return self


@dataclass(frozen=True, slots=True)
class PlacedCrop:
    jpeg: bytes
    box: Box
    """The crop's rectangle on the canvas, which is the person's box."""
    canvas: Canvas


def place_crop(crop: Pixels, config: CanvasConfig, seed: int, key: str, variant: int) -> PlacedCrop:
    draws = Draws("canvas", seed, key, variant)
    height, width = config.size
    if config.method == "expand_resize":
        placed_width, placed_height = _expanded_size(crop, config, draws)
    else:
        placed_width, placed_height = _fitting_size(crop, config)
    x, y = draws.index(width - placed_width + 1), draws.index(height - placed_height + 1)
    canvas = _blank(height, width).copy()
    canvas[y : y + placed_height, x : x + placed_width] = resize(crop, placed_width, placed_height)
    return PlacedCrop(
        simplejpeg.encode_jpeg(canvas, config.quality, "RGB", config.subsampling, fastdct=False),
        (float(x), float(y), float(x + placed_width), float(y + placed_height)),
        Canvas(
            ratio=(width / placed_width, height / placed_height),
            offset=(float(x), float(y)),
            variant=variant,
        ),
    )


def _expanded_size(crop: Pixels, config: CanvasConfig, draws: Draws) -> tuple[int, int]:
    """Width and height that the crop has once a canvas `ratio` times its size is resized."""
    height, width = config.size
    low, high = config.ratio
    ratio_x = ratio_y = draws.uniform(low, high)
    if config.independent:
        ratio_y = draws.uniform(low, high)
    else:
        skew = config.jitter ** draws.uniform(-0.5, 0.5)
        ratio_x, ratio_y = max(1.0, ratio_x * skew), max(1.0, ratio_y / skew)
    enlargement = max(width / (ratio_x * crop.shape[1]), height / (ratio_y * crop.shape[0]))
    shrink = max(1.0, enlargement / config.max_enlargement)
    return (
        max(1, round(width / (ratio_x * shrink))),
        max(1, round(height / (ratio_y * shrink))),
    )


def _fitting_size(crop: Pixels, config: CanvasConfig) -> tuple[int, int]:
    """The crop's own width and height, or what of them fits onto the canvas in the same shape."""
    (height, width), (crop_height, crop_width) = config.size, crop.shape[:2]
    scale = min(1.0, width / crop_width, height / crop_height)
    return max(1, round(crop_width * scale)), max(1, round(crop_height * scale))


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Resampling to the last bit the same on every machine.

    OpenCV promises that for exact bilinear sampling and for means over whole blocks of pixels; its general
    area mode works in floats. So a large reduction is a mild bilinear one, then a mean over blocks.
    """
    block_x = max(1, image.shape[1] // width)
    block_y = max(1, image.shape[0] // height)
    mild = cv2.resize(
        image, (width * block_x, height * block_y), interpolation=cv2.INTER_LINEAR_EXACT
    )
    if block_x > 1 or block_y > 1:
        mild = cv2.resize(mild, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(mild, np.uint8)


@lru_cache(maxsize=4)
def _blank(height: int, width: int) -> Pixels:
    """Copying one is cheaper than filling one: a third of a canvas' whole cost."""
    return np.full((height, width, 3), FILL_RGB, np.uint8)
