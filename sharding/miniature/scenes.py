"""World -> pictures: people put into a place, seen by a camera; whole scenes and single crops."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.miniature.sprites import Image, Sprite, extent
from sharding.miniature.world import Box


@dataclass(frozen=True)
class Look:
    """What a camera does to what it sees."""

    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Colour cast: factors of red, green and blue."""
    exposure: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    blur: float = 0.0
    """Sigma in pixels."""
    noise: float = 0.0
    """Standard deviation in grey levels."""
    vignette: float = 0.0
    """How much darker the corners are."""
    haze: float = 0.0
    """Share of light grey mixed in."""


@dataclass(frozen=True)
class Drawn:
    """Where a sprite came to lie in a scene."""

    box: Box
    head: Box
    visible_box: Box | None
    """None where nothing of it is seen."""
    visible_share: float
    """Of its pixels, those outside the picture counted as unseen."""
    inside_share: float
    """Of its pixels, covered by others or not, those that lie in the picture."""


NOISE = np.random.default_rng(3).normal(0, 1, (1024, 1024)).astype(np.float32)


def paste(
    scene: Image, sprite: Sprite, foot: tuple[float, float]
) -> tuple[slice, slice, Image] | None:
    """Puts a sprite's foot at `foot`; returns the touched window and the sprite's coverage in it."""
    x, y = round(foot[0] - sprite.foot[0]), round(foot[1] - sprite.foot[1])
    height, width = sprite.alpha.shape
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + width, scene.shape[1]), min(y + height, scene.shape[0])
    if x1 <= x0 or y1 <= y0:
        return None
    alpha = sprite.alpha[y0 - y : y1 - y, x0 - x : x1 - x]
    window = scene[y0:y1, x0:x1]
    window += (sprite.rgb[y0 - y : y1 - y, x0 - x : x1 - x] - window) * alpha[..., None]
    return slice(y0, y1), slice(x0, x1), alpha


def cast_shadow(
    scene: Image, foot: tuple[float, float], height: float, strength: float = 0.45
) -> None:
    """A soft dark ellipse where someone `height` pixels tall touches the ground."""
    rx, ry = 0.2 * height, 0.045 * height
    x0, x1 = max(int(foot[0] - rx), 0), min(int(foot[0] + rx) + 1, scene.shape[1])
    y0, y1 = max(int(foot[1] - ry), 0), min(int(foot[1] + ry) + 1, scene.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    gx = ((np.arange(x0, x1, dtype=np.float32) - foot[0]) / rx)[None]
    gy = ((np.arange(y0, y1, dtype=np.float32) - foot[1]) / ry)[:, None]
    shade = np.clip(1 - np.sqrt(gx * gx + gy * gy), 0, 1)
    scene[y0:y1, x0:x1] *= 1 - strength * shade[..., None]


def compose(
    scene: Image, sprites: Sequence[tuple[Sprite, tuple[float, float], float]]
) -> list[Drawn]:
    """Paints (sprite, foot, standing height) in the given order, far to near, and says what is seen."""
    owner = np.full(scene.shape[:2], -1, np.int16)
    inside = []
    for i, (sprite, foot, height) in enumerate(sprites):
        cast_shadow(scene, foot, height)
        touched = paste(scene, sprite, foot)
        inside.append(0)
        if touched is not None:
            rows, columns, alpha = touched
            owner[rows, columns][alpha > 0.5] = i
            inside[i] = int((alpha > 0.5).sum())
    return [
        _where(owner == i, sprite, foot, inside[i]) for i, (sprite, foot, _) in enumerate(sprites)
    ]


def _where(
    seen: NDArray[np.bool_], sprite: Sprite, foot: tuple[float, float], inside: int
) -> Drawn:
    dx, dy = round(foot[0] - sprite.foot[0]), round(foot[1] - sprite.foot[1])
    box, head = moved(sprite.box, dx, dy), moved(sprite.head, dx, dy)
    total = max(int((sprite.alpha > 0.5).sum()), 1)
    return Drawn(box, head, extent(seen), np.count_nonzero(seen) / total, inside / total)


def moved(box: Box, dx: float, dy: float) -> Box:
    return (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)


def draw_look(rng: np.random.Generator, base: Look, spread: float) -> Look:
    """A camera of the kind `base`: its own cast, exposure and contrast, `spread` apart from others."""
    gains = np.array(base.gains) * np.exp(rng.normal(0, 0.5 * spread, 3))
    r, g, b = gains / gains.mean() * np.mean(base.gains)
    return replace(
        base,
        gains=(float(r), float(g), float(b)),
        exposure=base.exposure * float(np.exp(rng.normal(0, 0.7 * spread))),
        contrast=base.contrast * float(np.exp(rng.normal(0, 0.3 * spread))),
        saturation=base.saturation * float(np.exp(rng.normal(0, 0.4 * spread))),
    )


def photograph(rng: np.random.Generator, scene: Image, look: Look) -> NDArray[np.uint8]:
    """The scene as the camera stores it: RGB, uint8."""
    height, width = scene.shape[:2]
    grey = (scene[..., :1] + scene[..., 1:2] + scene[..., 2:]) / np.float32(3)
    shot = grey + (scene - grey) * np.float32(look.saturation)
    shot *= np.array(look.gains, np.float32) * np.float32(look.exposure)
    shot = np.float32(118) + (shot - 118) * np.float32(look.contrast)
    if look.haze:
        shot += (200 - shot) * np.float32(look.haze)
    if look.vignette:
        gx = np.linspace(-1, 1, width, dtype=np.float32)[None]
        gy = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        shot *= (1 - np.float32(0.5 * look.vignette) * (gx * gx + gy * gy))[..., None]
    if look.blur:
        shot = np.asarray(cv2.GaussianBlur(shot, (0, 0), look.blur), np.float32)
    if look.noise:
        y, x = rng.integers(0, 1024 - height), rng.integers(0, 1024 - width)
        shot += np.float32(look.noise) * NOISE[y : y + height, x : x + width, None]
    return np.clip(np.rint(shot), 0, 255).astype(np.uint8)
