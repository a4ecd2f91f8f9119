"""What makes views of an image differ: its settings, and the parameters drawn from them once.

How they become pixels is another matter: `modes.py` on the CPU, `device_views.py` elsewhere.
"""

import difflib
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import cv2
from pydantic import Field, field_validator, model_validator

from pipeline.batch import FILL_RGB
from pipeline.config import Config
from pipeline.keyed import Draws
from pipeline.rendering.decode import Pixels
from pipeline.rendering.geometry import Boxes, Crop, Range, Thresholds
from pipeline.rendering.transforms import TRANSFORMS

Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(Config):
    """What makes views of an image differ. Colour is identity evidence, so its jitter is weak."""

    mode: Literal["exact", "fast", "reference", "device"] = "exact"
    """Arithmetic: torchvision's (exact), one colour matrix (fast), by torchvision itself, on the GPU."""
    number: Literal[1, 2] = 2
    """Of an image. With 1 the first alone is made, the same one; L_con has no pairs then."""
    two_variants: bool = False
    """Each view of a canvas from another variant: a person in two sizes, so that L_con is of any scale."""
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
    transform: str | None = None
    """A function of `pipeline/rendering/transforms.py`, applied between blur and erasing."""
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

    @field_validator("transform")
    @classmethod
    def _check_transform(cls, name: str | None) -> str | None:
        if name is not None and name not in TRANSFORMS:
            near = difflib.get_close_matches(name, TRANSFORMS, n=1)
            hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(sorted(TRANSFORMS))
            raise ValueError(f"no transform {name!r} in pipeline/rendering/transforms.py, {hint}")
        return name

    @model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        highest = {"canvas_side": 1.0, "erase_area": 1.0}
        for name in ("scene_scale", "canvas_side", "blur_sigma", "erase_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= highest.get(name, sys.float_info.max):
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high")
        if self.two_variants and self.number == 1:
            raise ValueError("two_variants gives each of two views its own, and number is 1")
        if self.mode == "device" and self.transform is not None:
            raise ValueError(
                "a transform wants pixels on the CPU, which mode device never has there"
            )
        return self

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.match_visible, self.detect_visible, self.match_height)

    @property
    def definition(self) -> dict[str, Any]:
        """What decides pixels and boxes. Two views go unsaid, as before there were streams of one."""
        return self.model_dump(mode="json", exclude={"number"} if self.number == 2 else None)

    @property
    def in_words(self) -> str:
        """How often an image is shown."""
        return "one view" if self.number == 1 else "two views"


@dataclass(frozen=True)
class Colour:
    """Torchvision's factors; these values change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False


NO_COLOUR_CHANGE = Colour()


class Erasure(NamedTuple):
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
        erasures=_draw_erasures(config, persons, draws),
    )


def erased_part(box: Boxes, part: Erasure) -> tuple[int, int, int, int]:
    """xyxy in whole pixels of the view that `box` (4,) is of; empty where the part is too thin."""
    x1, y1, x2, y2 = box.tolist()
    left, top = x1 + part.x * (x2 - x1), y1 + part.y * (y2 - y1)
    right, bottom = left + part.width * (x2 - x1), top + part.height * (y2 - y1)
    return round(left), round(top), round(right), round(bottom)


def fill(pixels: Pixels, x1: int, y1: int, x2: int, y2: int) -> None:
    """Paints a rectangle; twenty times faster than NumPy, which repeats three bytes slowly."""
    if x1 < x2 and y1 < y2:
        cv2.rectangle(pixels, (x1, y1), (x2 - 1, y2 - 1), FILL_RGB, cv2.FILLED)


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


def _draw_erasures(config: AugmentConfig, persons: int, draws: Draws) -> tuple[Erasure | None, ...]:
    """As many draws for each person, chosen or not."""
    drawn = iter(draws.uniforms(5 * persons))
    low, high = config.erase_area
    return tuple(
        _erasure(low + (high - low) * area, ratio, x, y) if chosen < config.erase else None
        for chosen, area, ratio, x, y in zip(*[drawn] * 5, strict=True)
    )


def _erasure(area: float, ratio: float, x: float, y: float) -> Erasure:
    """Neither side is longer than the box's, and their product is the area."""
    width = area**ratio
    height = area / width
    return Erasure(x * (1 - width), y * (1 - height), width, height)
