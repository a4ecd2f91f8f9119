"""Things that stand about: trees, cars, panels, and what people ride and sit on."""

from collections.abc import Callable
from itertools import pairwise
from math import cos, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.miniature.sprites import Easel, Image, Point, Sprite, plain
from sharding.miniature.world import Colour, Pose

CAR_PAINTS = (
    (180.0, 30.0, 30.0),
    (30.0, 40.0, 90.0),
    (200.0, 200.0, 204.0),
    (40.0, 42.0, 46.0),
    (96.0, 104.0, 110.0),
)


def strong_colour(rng: np.random.Generator) -> Colour:
    """A shop sign's colour."""
    r, g, b = rng.uniform(40, 215, 3)
    return (float(r), float(g), float(b))


def draw_tree(rng: np.random.Generator, canvas: Image, x: float, foot: float, unit: float) -> None:
    top = foot - unit * float(rng.uniform(1.6, 2.6))
    trunk = max(round(unit * 0.1), 1)
    cv2.line(
        canvas,
        (round(x), round(foot)),
        (round(x), round(top)),
        (74.0, 60.0, 48.0),
        trunk,
        cv2.LINE_AA,
    )
    leaf = np.array([64.0, 98.0, 48.0]) * float(rng.uniform(0.7, 1.25))
    for i in range(36):
        angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random()) * unit * 0.75
        centre = (round(x + far * np.cos(angle)), round(top + 0.8 * far * np.sin(angle)))
        tone = (leaf * (0.72 + 0.5 * i / 36) * float(rng.uniform(0.9, 1.1))).tolist()
        cv2.circle(
            canvas,
            centre,
            max(round(unit * float(rng.uniform(0.1, 0.22))), 1),
            tone,
            -1,
            cv2.LINE_AA,
        )


def draw_car(rng: np.random.Generator, canvas: Image, x: float, foot: float, unit: float) -> None:
    """A parked car from behind."""
    paint = np.array(CAR_PAINTS[rng.integers(len(CAR_PAINTS))])
    half, tall = unit * 0.52, unit * 0.82

    def box(x0: float, y0: float, x1: float, y1: float, colour: NDArray[np.float64]) -> None:
        corners = [
            (x + x0 * half, foot - y0 * tall),
            (x + x1 * half, foot - y0 * tall),
            (x + 0.9 * x1 * half, foot - y1 * tall),
            (x + 0.9 * x0 * half, foot - y1 * tall),
        ]
        cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], colour.tolist(), cv2.LINE_AA)

    shadow = np.array([30.0, 30.0, 32.0])
    box(-1.05, -0.03, 1.05, 0.08, shadow)
    box(-0.92, 0.0, -0.6, 0.2, shadow)
    box(0.6, 0.0, 0.92, 0.2, shadow)
    box(-1.0, 0.14, 1.0, 0.62, paint)
    box(-0.84, 0.6, 0.84, 1.0, paint * 0.9)
    box(-0.72, 0.64, 0.72, 0.93, np.array([88.0, 104.0, 116.0]))
    box(-0.96, 0.42, -0.7, 0.54, np.array([206.0, 40.0, 36.0]))
    box(0.7, 0.42, 0.96, 0.54, np.array([206.0, 40.0, 36.0]))
    box(-0.25, 0.28, 0.25, 0.4, np.array([224.0, 224.0, 214.0]))


def draw_panel(rng: np.random.Generator, canvas: Image, x: float, foot: float, unit: float) -> None:
    """A pillar, or an advertising panel on one."""
    half = unit * float(rng.uniform(0.12, 0.3))
    top = foot - unit * float(rng.uniform(1.3, 2.4))
    grey = float(rng.uniform(110, 190))

    def block(x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        corner, other = (round(x + x0 * half), round(y0)), (round(x + x1 * half), round(y1))
        cv2.rectangle(canvas, corner, other, colour, -1)

    block(-1, top, 1, foot, (grey, grey, grey))
    block(0.5, top, 1, foot, (grey * 0.8, grey * 0.8, grey * 0.8))
    if rng.random() < 0.6:
        y0, y1 = foot - unit * 1.15, foot - unit * 0.35
        block(-0.85, y0, 0.85, y1, strong_colour(rng))
        block(-0.6, (y0 + y1) / 2, 0.6, y1, strong_colour(rng))


def _ground_frame(yaw: float) -> Callable[[float, float, float], Point]:
    """(forward, up, sideways) of someone who faces `yaw`, from the ground under them, to the sprite."""

    def at(forward: float, up: float, side: float) -> Point:
        x = forward * sin(yaw) + side * cos(yaw)
        near = forward * cos(yaw) - side * sin(yaw)
        return (x, 1.0 - up + 0.06 * near, near)

    return at


def draw_bench(pose: Pose, height: float, light: float = 0.0) -> Sprite:
    """What someone `height` pixels tall when standing sits on; same foot as the sitter's."""
    easel, at = Easel(height, light, 78), _ground_frame(pose.yaw)
    wood, iron = plain((132.0, 98.0, 66.0)), plain((60.0, 62.0, 66.0))
    for side in (-0.24, 0.24):
        for forward in (-0.12, 0.1):
            easel.capsule(at(forward, 0.22, side), at(forward, 0.01, side), 0.014, 0.014, iron)
    for forward, up in (
        (-0.16, 0.44),
        (-0.16, 0.36),
        (-0.12, 0.225),
        (-0.02, 0.225),
        (0.08, 0.225),
    ):
        easel.capsule(at(forward, up, -0.3), at(forward, up, 0.3), 0.022, 0.022, wood)
    return easel.sprite()


def draw_bicycle(pose: Pose, height: float, colour: Colour, light: float = 0.0) -> Sprite:
    """The vehicle under a rider who is `height` pixels tall when standing; same foot as the rider's."""
    easel, at = Easel(height, light, 77), _ground_frame(pose.yaw)
    dark, paint = plain((30.0, 30.0, 32.0)), plain(colour)
    turns = np.linspace(0, 2 * pi, 19)
    for hub in (-0.3, 0.3):
        rim = [at(hub + 0.165 * cos(t), 0.17 + 0.165 * sin(t), 0.0) for t in turns]
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
        easel.capsule(at(fa, ua, 0.0), at(fb, ub, 0.0), 0.012, 0.012, paint)
    easel.capsule(at(0.21, 0.56, -0.11), at(0.21, 0.56, 0.11), 0.01, 0.01, dark)
    easel.capsule(at(-0.15, 0.48, 0.0), at(-0.05, 0.48, 0.0), 0.018, 0.012, dark)
    return easel.sprite()
