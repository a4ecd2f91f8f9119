"""One person as a sprite: a small three-dimensional skeleton, dressed, shaded, drawn at twice its size."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import cos, hypot, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.miniature.world import Appearance, Box, Colour, Garment, Pose

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


GRAIN = np.tile(_cloth_grain(), (3, 3))


@dataclass(frozen=True)
class Sprite:
    """A cut-out: RGB, coverage, where it touches the ground, and the tight boxes of all and of the head."""

    rgb: Image
    alpha: Image
    foot: tuple[float, float]
    box: Box
    head: Box


class _Easel:
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
        ys, xs = np.nonzero(alpha > 0.3)
        box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        foot_x, foot_y = (v / OVERSAMPLING for v in self.pixels(0, 1))
        left, top = (v / OVERSAMPLING for v in self.pixels(head[0] - 0.055, head[1] - 0.075))
        right, bottom = (v / OVERSAMPLING for v in self.pixels(head[0] + 0.055, head[1] + 0.07))
        return Sprite(rgb, alpha, (foot_x, foot_y), box, (left, top, right, bottom))


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


class _Body:
    """Joints of a posed person on the picture plane, crown at y = 0 and lowest foot at y = 1."""

    def __init__(self, person: Appearance, pose: Pose) -> None:
        self.yaw, self.pitch, self.pose = pose.yaw, pose.pitch, pose
        self.front = cos(pose.yaw)
        self.drop = 0.0
        wide = person.build
        hip = np.array([0.0, 0.5, 0.0])
        chest = hip + np.array([0.0, -0.32 * cos(pose.lean), 0.32 * sin(pose.lean)])
        self.hip, self.chest = self.view(hip), self.view(chest)
        self.neck = self.view(chest + np.array([0, -0.035, 0.01]))
        self.head_frame = chest + np.array([0, -0.105, 0.018])
        self.head = self.view(self.head_frame)
        self.legs = [self._leg(side, hip, wide) for side in (0, 1)]
        self.arms = [self._arm(side, chest, wide) for side in (0, 1)]
        self.chest_frame = chest
        lowest = max(leg[3][1] for leg in self.legs)
        self.shift(1.0 - lowest)

    def view(self, p: NDArray[np.float64]) -> Point:
        """Orthographic: turn by yaw, then tip by the camera's pitch."""
        x = p[0] * cos(self.yaw) + p[2] * sin(self.yaw)
        near = p[2] * cos(self.yaw) - p[0] * sin(self.yaw)
        return (
            float(x),
            float(p[1] * cos(self.pitch) + near * sin(self.pitch) + self.drop),
            float(near),
        )

    def shift(self, drop: float) -> None:
        """Moves everything down, so that the lower foot stands on the ground."""

        def moved(p: Point) -> Point:
            return (p[0], p[1] + drop, p[2])

        self.drop = drop
        self.hip, self.chest = moved(self.hip), moved(self.chest)
        self.neck, self.head = moved(self.neck), moved(self.head)
        self.legs = [[moved(p) for p in leg] for leg in self.legs]
        self.arms = [[moved(p) for p in arm] for arm in self.arms]

    def _leg(self, side: int, hip: NDArray[np.float64], wide: float) -> list[Point]:
        """Hip, knee, ankle, toe."""
        swing, bend = self.pose.thighs[side], self.pose.knees[side]
        top = hip + np.array([(-1, 1)[side] * 0.046 * wide, 0.0, 0.0])
        knee = top + 0.23 * np.array([0, cos(swing), sin(swing)])
        shin = swing - bend
        ankle = knee + 0.225 * np.array([0, cos(shin), sin(shin)])
        toe = ankle + np.array([(-1, 1)[side] * 0.012, 0.026, 0.06])
        return [self.view(p) for p in (top, knee, ankle, toe)]

    def _arm(self, side: int, chest: NDArray[np.float64], wide: float) -> list[Point]:
        """Shoulder, elbow, hand."""
        out, swing = (-1, 1)[side], self.pose.arms[side]
        top = chest + np.array([out * 0.098 * wide, 0.015, 0.0])
        elbow = top + 0.155 * np.array([out * sin(self.pose.spread), cos(swing), sin(swing)])
        bend = swing + self.pose.elbows[side]
        hand = elbow + 0.15 * np.array([out * 0.3 * sin(self.pose.spread), cos(bend), sin(bend)])
        return [self.view(p) for p in (top, elbow, hand)]

    def half_width(self, front: float, side: float) -> float:
        """On the picture plane, of a trunk that is `front` wide and `side` deep (both halves)."""
        return hypot(front * cos(self.yaw), side * sin(self.yaw))


def draw_person(person: Appearance, pose: Pose, height: float, light: float = 0.0) -> Sprite:
    """`height` is the standing height in pixels; `light` in -1..1 says from which side it comes."""
    easel = _Easel(height, light, person.grain)
    body = _Body(person, pose)
    sideways = -sin(pose.yaw)  # nearness of the right side
    near_arm = 1 if sideways > 0 else 0
    upper = cloth_of(person.upper)
    _draw_arm(easel, person, body.arms[1 - near_arm], upper)
    if body.front > 0:
        _draw_back_items(easel, person, body)
    if not (pose.seated and body.front > 0.2):
        _draw_legs(easel, person, body)
    _draw_trunk(easel, person, body, upper)
    if pose.seated and body.front > 0.2:
        _draw_legs(easel, person, body)
    _draw_head(easel, person, body)
    if body.front <= 0:
        _draw_back_items(easel, person, body)
    _draw_arm(easel, person, body.arms[near_arm], upper)
    _draw_bag(easel, person, body, near_arm)
    return easel.sprite(body.head)


def _between(a: Point, b: Point, share: float) -> Point:
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def _draw_arm(easel: _Easel, person: Appearance, arm: list[Point], upper: Cloth) -> None:
    shoulder, elbow, hand = arm
    wide, skin = person.build, plain(person.skin)
    easel.ellipse(hand, 0.021, 0.024, skin)
    if person.sleeve < 1:
        easel.capsule(elbow, hand, 0.022 * wide, 0.016 * wide, skin)
        easel.capsule(shoulder, elbow, 0.03 * wide, 0.023 * wide, skin)
        easel.capsule(shoulder, _between(shoulder, elbow, 0.7), 0.036 * wide, 0.033 * wide, upper)
    else:
        easel.capsule(elbow, _between(elbow, hand, 0.88), 0.028 * wide, 0.022 * wide, upper)
        easel.capsule(shoulder, elbow, 0.038 * wide, 0.029 * wide, upper)


def _draw_legs(easel: _Easel, person: Appearance, body: _Body) -> None:
    wide, skin, lower = person.build, plain(person.skin), cloth_of(person.lower)
    far_first = sorted(body.legs, key=lambda leg: leg[1][2] + leg[3][2])
    for hip, knee, ankle, toe in far_first:
        heel = (ankle[0] - (toe[0] - ankle[0]) * 0.25, toe[1] - 0.004, 0.0)
        easel.capsule(heel, (toe[0], toe[1] - 0.002, 0.0), 0.021, 0.018, plain(person.shoes))
        bare = person.legwear != "trousers"
        leg = skin if bare else lower
        easel.capsule(knee, ankle, 0.036 * wide, (0.022 if bare else 0.028) * wide, leg)
        easel.capsule(hip, knee, 0.054 * wide, 0.037 * wide, leg)
        if person.legwear == "shorts":
            easel.capsule(
                hip, _between(hip, knee, min(2 * person.cuff, 1)), 0.058 * wide, 0.05 * wide, lower
            )
    if person.legwear == "skirt":
        _draw_skirt(easel, person, body, lower)


def _draw_skirt(easel: _Easel, person: Appearance, body: _Body, lower: Cloth) -> None:
    knees = [leg[1] for leg in body.legs]
    middle = _between(knees[0], knees[1], 0.5)
    hip = body.hip
    hem = (
        _between(hip, middle, 2 * person.cuff)
        if body.pose.seated
        else _drop(hip, 0.46 * person.cuff)
    )
    top = body.half_width(0.085, 0.07) * person.build
    spread = max(abs(knee[0] - hem[0]) for knee in knees) * min(2 * person.cuff, 1)
    low = max(top * 1.25, spread + 0.05 * person.build)
    outline = [
        (hip[0] - top, hip[1] - 0.03),
        (hip[0] + top, hip[1] - 0.03),
        (hem[0] + low, hem[1]),
        (hem[0] - low, hem[1]),
    ]
    easel.part(outline, hip, hem, low, lower)


def _drop(p: Point, distance: float) -> Point:
    return (p[0], p[1] + distance, p[2])


TRUNK = (  # share of the way from chest to hip, half width from the front, half depth, all of build 1
    (-0.13, 0.032, 0.034),
    (-0.06, 0.085, 0.05),
    (0.04, 0.108, 0.062),
    (0.25, 0.104, 0.07),
    (0.62, 0.086, 0.066),
    (1.0, 0.096, 0.076),
)


def _draw_trunk(easel: _Easel, person: Appearance, body: _Body, upper: Cloth) -> None:
    """Upper garment, with shirt front, open jacket or logo where the camera sees them."""
    chest, hip = body.chest, body.hip
    rows = [(s, body.half_width(f, d) * person.build) for s, f, d in TRUNK]
    hem = (person.hem - 0.18) / 0.32
    flare = 1.0 if hem < 1.2 else 1.15
    rows.append((hem, rows[-1][1] * flare))
    points = [(_between(chest, hip, s), w) for s, w in rows]
    outline = [(p[0] + w, p[1]) for p, w in points] + [
        (p[0] - w, p[1]) for p, w in reversed(points)
    ]
    widest = max(w for _, w in points)
    easel.part(outline, points[1][0], points[-1][0], widest, upper)
    turn = 0.055 * sin(body.yaw)  # where the middle of the chest has gone
    if body.front > 0.15 and person.inner is not None:
        half = 0.04 * body.front * person.build
        a, b = _between(chest, hip, -0.08), _between(chest, hip, hem)
        strip = [
            (a[0] + turn - half * 0.6, a[1]),
            (a[0] + turn + half * 0.6, a[1]),
            (b[0] + turn + half, b[1]),
            (b[0] + turn - half, b[1]),
        ]
        easel.part(strip, a, b, widest, plain(person.inner))
    elif abs(body.front) > 0.3 and person.logo is not None:
        half = (0.045 if body.front > 0 else 0.06) * abs(body.front) * person.build
        x = chest[0] + turn * (1 if body.front > 0 else -1)
        y0, y1 = chest[1] + 0.055, chest[1] + (0.12 if body.front > 0 else 0.15)
        block = [(x - half, y0), (x + half, y0), (x + half, y1), (x - half, y1)]
        easel.part(block, (x, y0, 0.0), (x, y1, 0.0), widest, plain(person.logo))


def _draw_head(easel: _Easel, person: Appearance, body: _Body) -> None:
    skin, hair = plain(person.skin), plain(person.hair)
    x, y, _ = body.head
    facing, side = body.front, sin(body.yaw)
    easel.capsule(body.neck, (x, y + 0.03, 0.0), 0.03, 0.028, skin)
    if person.hair_style == "hood":
        hair = plain(person.upper.colour)
    back = (x - 0.01 * side, y - 0.006, 0.0)
    bald = person.hair_style == "bald"
    easel.ellipse(back, 0.05 + 0.006 * abs(side), 0.068, skin if bald else hair)
    if facing > -0.45:
        face = (x + 0.02 * side, y + 0.014, 0.0)
        easel.ellipse(face, 0.043 - 0.008 * abs(side), 0.052, skin)
        _draw_face(easel, person, face, facing, side)
        if not bald:
            easel.ellipse((x + 0.004 * side, y - 0.042, 0.0), 0.045, 0.027, hair)
    if person.hair_style == "cap":
        easel.ellipse((x, y - 0.036, 0.0), 0.054, 0.036, plain(person.headwear))
        brim = (x + 0.05 * side, y - 0.022 + 0.006 * max(facing, 0), 0.0)
        if facing > -0.3:
            easel.ellipse(brim, 0.034 + 0.012 * abs(facing), 0.009, plain(person.headwear))
    elif person.hair_style == "bun":
        easel.ellipse((x - 0.05 * side, y - 0.058, 0.0), 0.024, 0.022, hair)


def _draw_face(easel: _Easel, person: Appearance, face: Point, facing: float, side: float) -> None:
    dark = plain((44.0, 32.0, 30.0))
    for eye in (-1, 1):
        x = face[0] + eye * 0.017 * max(facing, 0) + 0.014 * side
        easel.ellipse((x, face[1] - 0.006, 0.0), 0.0055, 0.0045, dark)
    r, g, b = person.skin
    lips = plain((r * 0.75, g * 0.55, b * 0.55))
    easel.ellipse((face[0] + 0.014 * side, face[1] + 0.026, 0.0), 0.011, 0.0035, lips)


def _draw_back_items(easel: _Easel, person: Appearance, body: _Body) -> None:
    """Long hair and a backpack: behind the trunk when the person faces the camera."""
    bag = plain(person.bag_colour)
    if person.bag == "backpack":
        a = body.view(body.chest_frame + np.array([0, 0.03, -0.09]))
        b = body.view(body.chest_frame + np.array([0, 0.22, -0.09]))
        r = body.half_width(0.082, 0.05)
        easel.capsule(a, b, r * 0.85, r, bag)
        pocket = plain(
            (person.bag_colour[0] * 0.7, person.bag_colour[1] * 0.7, person.bag_colour[2] * 0.7)
        )
        if body.front < -0.2:
            easel.ellipse(_between(a, b, 0.95), r * 0.7, 0.035, pocket)
    if person.hair_style == "long":
        top = body.view(body.head_frame + np.array([0, 0.0, -0.02]))
        low = body.view(body.head_frame + np.array([0, 0.125, -0.045]))
        easel.capsule(top, low, 0.05, 0.04 if body.front > 0 else 0.05, plain(person.hair))


def _draw_bag(easel: _Easel, person: Appearance, body: _Body, near_arm: int) -> None:
    bag = plain(person.bag_colour)
    if person.bag == "backpack" and body.front > 0:
        for sign in (-1, 1):
            x = 0.062 * sign * body.front * person.build + 0.03 * sin(body.yaw)
            top, low = _drop(body.chest, -0.02), _drop(body.chest, 0.13)
            easel.capsule((top[0] + x, top[1], 0), (low[0] + x, low[1], 0), 0.011, 0.011, bag)
    elif person.bag == "shoulder":
        side = person.grain % 2 * 2 - 1
        x = 0.1 * side * body.front * person.build
        easel.capsule(
            (body.chest[0] - 0.7 * x, body.chest[1], 0),
            (body.hip[0] + x, body.hip[1], 0),
            0.008,
            0.008,
            bag,
        )
        easel.capsule(
            (body.hip[0] + x, body.hip[1] - 0.01, 0),
            (body.hip[0] + x, body.hip[1] + 0.06, 0),
            0.05,
            0.055,
            bag,
        )
    elif person.bag == "hand":
        hand = body.arms[near_arm][2]
        easel.capsule(hand, _drop(hand, 0.05), 0.006, 0.006, bag)
        easel.capsule(_drop(hand, 0.08), _drop(hand, 0.14), 0.048, 0.055, bag)


def draw_bicycle(pose: Pose, height: float, colour: Colour, light: float = 0.0) -> Sprite:
    """The vehicle under a rider who is `height` pixels tall when standing; same foot as the rider's."""
    easel = _Easel(height, light, 77)
    dark, paint = plain((30.0, 30.0, 32.0)), plain(colour)

    def at(forward: float, up: float, side: float = 0.0) -> Point:
        x = forward * sin(pose.yaw) + side * cos(pose.yaw)
        near = forward * cos(pose.yaw) - side * sin(pose.yaw)
        return (x, 1.0 - up + 0.06 * near, near)

    turns = np.linspace(0, 2 * pi, 19)
    for hub in (-0.3, 0.3):
        rim = [at(hub + 0.165 * cos(t), 0.17 + 0.165 * sin(t)) for t in turns]
        for a, b in pairwise(rim):
            easel.capsule(a, b, 0.013, 0.013, dark)
    tubes = [
        ((-0.3, 0.17), (-0.1, 0.44)),
        ((-0.3, 0.17), (0.0, 0.16)),
        ((-0.1, 0.44), (0.0, 0.16)),
        ((0.0, 0.16), (0.22, 0.46)),
        ((-0.1, 0.44), (0.22, 0.46)),
        ((0.3, 0.17), (0.21, 0.56)),
    ]
    for (fa, ua), (fb, ub) in tubes:
        easel.capsule(at(fa, ua), at(fb, ub), 0.012, 0.012, paint)
    easel.capsule(at(0.21, 0.56, -0.11), at(0.21, 0.56, 0.11), 0.01, 0.01, dark)
    easel.capsule(at(-0.15, 0.48), at(-0.05, 0.48), 0.018, 0.012, dark)
    return easel.sprite()
