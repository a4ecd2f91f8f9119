"""Cut-out pictures (sprites) and the easel that paints their parts: clothed, shaded, at twice their size."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, hypot, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.miniature.world import Box, Colour, Garment

Image = NDArray[np.float32]
Point = tuple[float, float, float]
"""x and y on the sprite, in body heights from the crown, and nearness to the camera."""
Cloth = Callable[[Image, Image], Image]
"""(distance along the part, distance across it), in body heights -> RGB."""

OVERSAMPLING = 2
SUBPIXEL_BITS = 4
MARGIN_X, MARGIN_TOP, MARGIN_BOTTOM = 0.5, 0.06, 0.14


def _cloth_grain() -> Image:
    """Tileable noise around 1: threads and folds, cut at another place for each person."""
    rng = np.random.default_rng(5)
    fine = rng.normal(0, 0.045, (512, 512))
    folds = cv2.GaussianBlur(rng.normal(0, 1, (512, 512)), (0, 0), 7)
    return (1 + fine + 0.05 * folds / folds.std()).astype(np.float32)


GRAIN = np.tile(_cloth_grain(), (4, 4))


@dataclass(frozen=True)
class Sprite:
    """A cut-out: RGB, coverage, where it touches the ground, and the tight boxes of all and of the head."""

    rgb: Image
    alpha: Image
    foot: tuple[float, float]
    box: Box
    head: Box


class Easel:
    """A canvas that parts are painted on, in body heights, later parts over earlier ones."""

    def __init__(self, height: float, light: float, grain: int) -> None:
        self.scale = height * OVERSAMPLING
        self.light = light
        self.grain = (grain % 509, grain // 509 % 509)
        width = 2 * round(MARGIN_X * self.scale)
        rows = round((1 + MARGIN_TOP + MARGIN_BOTTOM) * self.scale)
        rows += rows % 2
        self.rgb = np.full((rows, width, 3), 24, np.float32)
        self.alpha = np.zeros((rows, width), np.float32)

    def pixels(self, x: float, y: float) -> tuple[float, float]:
        return (x + MARGIN_X) * self.scale, (y + MARGIN_TOP) * self.scale

    def capsule(self, a: Point, b: Point, radius_a: float, radius_b: float, cloth: Cloth) -> None:
        """A limb that tapers from `a` to `b`, rounded at both ends."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        length = max(hypot(dx, dy), 1e-6)
        nx, ny = -dy / length, dx / length
        outline = [
            (a[0] + nx * radius_a, a[1] + ny * radius_a),
            (b[0] + nx * radius_b, b[1] + ny * radius_b),
            (b[0] - nx * radius_b, b[1] - ny * radius_b),
            (a[0] - nx * radius_a, a[1] - ny * radius_a),
        ]
        discs = [(a[0], a[1], radius_a), (b[0], b[1], radius_b)]
        self.part(outline, a, b, max(radius_a, radius_b), cloth, discs)

    def ellipse(self, centre: Point, rx: float, ry: float, cloth: Cloth) -> None:
        turns = np.linspace(0, 2 * pi, 24, endpoint=False)
        outline = [(centre[0] + rx * cos(t), centre[1] + ry * sin(t)) for t in turns]
        top = (centre[0], centre[1] - ry, 0.0)
        self.part(outline, top, (centre[0], centre[1] + ry, 0.0), rx, cloth)

    def part(
        self,
        outline: list[tuple[float, float]],
        a: Point,
        b: Point,
        radius: float,
        cloth: Cloth,
        discs: list[tuple[float, float, float]] | None = None,
    ) -> None:
        """Paints a shape whose cloth and shading follow the axis from `a` to `b`."""
        discs = discs or []
        xs = [x for x, _ in outline] + [x + s * r for x, _, r in discs for s in (-1, 1)]
        ys = [y for _, y in outline] + [y + s * r for _, y, r in discs for s in (-1, 1)]
        left, top = self.pixels(min(xs), min(ys))
        right, bottom = self.pixels(max(xs), max(ys))
        x0, y0 = max(int(left) - 1, 0), max(int(top) - 1, 0)
        x1 = min(int(right) + 2, self.alpha.shape[1])
        y1 = min(int(bottom) + 2, self.alpha.shape[0])
        if x1 <= x0 or y1 <= y0:
            return
        mask = self._mask(outline, discs, (x0, y0, x1, y1))
        ax, ay = self.pixels(a[0], a[1])
        length = max(hypot(b[0] - a[0], b[1] - a[1]), 1e-6)
        ux, uy = (b[0] - a[0]) / length, (b[1] - a[1]) / length
        gx = (np.arange(x0, x1, dtype=np.float32) - ax)[None] / self.scale
        gy = (np.arange(y0, y1, dtype=np.float32) - ay)[:, None] / self.scale
        along, across = gx * ux + gy * uy, gx * uy - gy * ux
        turn = np.clip(across / max(radius, 1e-6), -1, 1)
        shade = 1.04 - 0.34 * turn * turn + 0.2 * self.light * turn
        gy0, gx0 = self.grain
        shade *= GRAIN[gy0 + y0 : gy0 + y1, gx0 + x0 : gx0 + x1]
        colour = cloth(along, across) * shade[..., None]
        canvas = self.rgb[y0:y1, x0:x1]
        canvas += (colour - canvas) * mask[..., None]
        alpha = self.alpha[y0:y1, x0:x1]
        np.maximum(alpha, mask, out=alpha)

    def _mask(
        self,
        outline: list[tuple[float, float]],
        discs: list[tuple[float, float, float]],
        window: tuple[int, int, int, int],
    ) -> Image:
        x0, y0, x1, y1 = window
        fixed = 1 << SUBPIXEL_BITS
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        origin = np.array([x0, y0])
        points = (np.array([self.pixels(x, y) for x, y in outline]) - origin) * fixed
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 255, cv2.LINE_AA, SUBPIXEL_BITS)
        for x, y, r in discs:
            px, py = (np.array(self.pixels(x, y)) - origin) * fixed
            centre = (round(float(px)), round(float(py)))
            cv2.circle(
                mask, centre, round(r * self.scale * fixed), 255, -1, cv2.LINE_AA, SUBPIXEL_BITS
            )
        return mask.astype(np.float32) / np.float32(255)

    def sprite(self, head: Point = (0.0, 0.0, 0.0)) -> Sprite:
        size = (self.alpha.shape[1] // OVERSAMPLING, self.alpha.shape[0] // OVERSAMPLING)
        rgb = np.asarray(cv2.resize(self.rgb, size, interpolation=cv2.INTER_AREA), np.float32)
        alpha = np.asarray(cv2.resize(self.alpha, size, interpolation=cv2.INTER_AREA), np.float32)
        box = extent(alpha > 0.3) or (0.0, 0.0, 0.0, 0.0)
        foot_x, foot_y = (v / OVERSAMPLING for v in self.pixels(0, 1))
        left, top = (v / OVERSAMPLING for v in self.pixels(head[0] - 0.055, head[1] - 0.075))
        right, bottom = (v / OVERSAMPLING for v in self.pixels(head[0] + 0.055, head[1] + 0.07))
        return Sprite(rgb, alpha, (foot_x, foot_y), box, (left, top, right, bottom))


def extent(mask: NDArray[np.bool_]) -> Box | None:
    """The tight box around what is true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def plain(colour: Colour) -> Cloth:
    fill = np.array(colour, np.float32)
    return lambda along, across: fill


def _wave(phase: Image, period: float) -> Image:
    """0..1 stripes with soft edges."""
    return np.clip(0.5 + 2.5 * np.sin(phase * np.float32(2 * pi / period)), 0, 1)


def cloth_of(garment: Garment) -> Cloth:
    base, accent = np.array(garment.colour, np.float32), np.array(garment.accent, np.float32)
    period = garment.period

    def mix(along: Image, across: Image) -> Image:
        match garment.pattern:
            case "hoops":
                share = _wave(along, period)
            case "bars":
                share = _wave(across, period * 0.8)
            case "checks":
                share = 0.5 * (_wave(along, period) + _wave(across, period))
            case "dots":
                wave = np.sin(along * (2 * pi / period)) * np.sin(across * (2 * pi / period))
                share = np.clip(4 * wave - 1.6, 0, 1)
            case "block":
                share = np.clip((0.13 - along) * 80, 0, 1)
            case _:
                share = np.clip(along / 0.32, 0, 1)
        return base + (accent - base) * share[..., None]

    return plain(garment.colour) if garment.pattern == "plain" else mix
