"""One person as a sprite: a small three-dimensional skeleton, dressed as that person dresses."""

from math import cos, hypot, sin

import numpy as np
from numpy.typing import NDArray

from sharding.miniature.sprites import Cloth, Easel, Point, Sprite, cloth_of, plain
from sharding.miniature.world import Appearance, Pose


class _Body:
    """Joints of a posed person on the picture plane, crown at y = 0 and lowest foot at y = 1."""

    def __init__(self, person: Appearance, pose: Pose) -> None:
        self.yaw, self.pitch, self.pose = pose.yaw, pose.pitch, pose
        self.front = cos(pose.yaw)
        hip = np.array([0.0, 0.5, 0.0])
        chest = hip + np.array([0.0, -0.32 * cos(pose.lean), 0.32 * sin(pose.lean)])
        self.chest_frame, self.head_frame = chest, chest + np.array([0, -0.105, 0.018])
        self.drop = 0.0
        # The lower foot stands on the ground, however the knees are bent.
        self.drop = 1.0 - max(self._leg(side, hip, person.build)[3][1] for side in (0, 1))
        self.hip, self.chest = self.view(hip), self.view(chest)
        self.neck = self.view(chest + np.array([0, -0.035, 0.01]))
        self.head = self.view(self.head_frame)
        self.legs = [self._leg(side, hip, person.build) for side in (0, 1)]
        self.arms = [self._arm(side, chest, person.build) for side in (0, 1)]

    def view(self, p: NDArray[np.float64]) -> Point:
        """Orthographic: turn by yaw, then tip by the camera's pitch."""
        x = p[0] * cos(self.yaw) + p[2] * sin(self.yaw)
        near = p[2] * cos(self.yaw) - p[0] * sin(self.yaw)
        return (
            float(x),
            float(p[1] * cos(self.pitch) + near * sin(self.pitch) + self.drop),
            float(near),
        )

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
    easel = Easel(height, light, person.grain)
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


def _draw_arm(easel: Easel, person: Appearance, arm: list[Point], upper: Cloth) -> None:
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


def _draw_legs(easel: Easel, person: Appearance, body: _Body) -> None:
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


def _draw_skirt(easel: Easel, person: Appearance, body: _Body, lower: Cloth) -> None:
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


def _draw_trunk(easel: Easel, person: Appearance, body: _Body, upper: Cloth) -> None:
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


def _draw_head(easel: Easel, person: Appearance, body: _Body) -> None:
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


def _draw_face(easel: Easel, person: Appearance, face: Point, facing: float, side: float) -> None:
    dark = plain((44.0, 32.0, 30.0))
    for eye in (-1, 1):
        x = face[0] + eye * 0.017 * max(facing, 0) + 0.014 * side
        easel.ellipse((x, face[1] - 0.006, 0.0), 0.0055, 0.0045, dark)
    r, g, b = person.skin
    lips = plain((r * 0.75, g * 0.55, b * 0.55))
    easel.ellipse((face[0] + 0.014 * side, face[1] + 0.026, 0.0), 0.011, 0.0035, lips)


def _draw_back_items(easel: Easel, person: Appearance, body: _Body) -> None:
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


def _draw_bag(easel: Easel, person: Appearance, body: _Body, near_arm: int) -> None:
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
