"""World -> re-ID crops: one person before one camera's backdrop, cut out the way a release cuts them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.miniature.drawing import draw_person
from sharding.miniature.scenery import PLACES, draw_place
from sharding.miniature.scenes import Look, compose, draw_look, photograph
from sharding.miniature.sprites import Image
from sharding.miniature.world import Appearance, draw_appearance, draw_pose, generator

BACKDROP = (480, 300)


@dataclass(frozen=True)
class Camera:
    """A fixed camera: what it always sees, and how it renders it."""

    backdrop: Image
    horizon: float
    look: Look
    pitch: float
    """How far it looks down, radians."""
    light: float
    """Side that the light comes from, -1..1."""


def make_camera(seed: int, place: str, base: Look, spread: float, *names: object) -> Camera:
    rng = generator(seed, "camera", *names)
    horizon = BACKDROP[1] * float(rng.uniform(0.24, 0.36))
    backdrop = draw_place(rng, PLACES[place], BACKDROP, horizon)
    pitch, light = float(rng.uniform(0.05, 0.3)), float(rng.uniform(-1, 1))
    return Camera(backdrop, horizon, draw_look(rng, base, spread), pitch, light)


def draw_crop(
    rng: np.random.Generator,
    camera: Camera,
    person: Appearance,
    size: tuple[int, int],
    difficulty: float,
    strangers: Sequence[Appearance] = (),
    fill: float = 0.9,
) -> NDArray[np.uint8]:
    """A crop of `size` (width, height) whose person is about `fill` of its height.

    `strangers` may pass behind or, the likelier the harder, in front.
    """
    width, height = size
    tall = height * fill * float(rng.uniform(0.94, 1.06))
    foot = (
        width / 2 + float(rng.normal(0, 0.04)) * width,
        height * (0.5 + 0.47 * fill) + float(rng.normal(0, 1.5)),
    )
    scene = _surroundings(rng, camera, size, foot, tall)
    light = float(np.clip(camera.light + rng.normal(0, 0.3), -1, 1))
    pose = draw_pose(rng, pitch=camera.pitch)
    sprites = [(draw_person(person, pose, tall, light), foot, tall)]
    for stranger in strangers:
        front = rng.random() < 0.5 * difficulty
        side = (
            float(rng.choice([-1.0, 1.0]))
            * width
            * float(rng.uniform(0.42, 0.62) if front else rng.uniform(0.3, 0.6))
        )
        grown = tall * float(rng.uniform(1.0, 1.15) if front else rng.uniform(0.7, 0.95))
        sprite = draw_person(stranger, draw_pose(rng, pitch=camera.pitch), grown, light)
        spot = (foot[0] + side, foot[1] + (grown - tall) * 0.6)
        sprites.insert(len(sprites) if front else 0, (sprite, spot, grown))
    compose(scene, sprites)
    if rng.random() < 0.3 * difficulty:
        _obstacle(rng, scene)
    weather = replace(
        camera.look, exposure=camera.look.exposure * float(np.exp(rng.normal(0, 0.2 * difficulty)))
    )
    return photograph(rng, scene, weather)


def _surroundings(
    rng: np.random.Generator,
    camera: Camera,
    size: tuple[int, int],
    foot: tuple[float, float],
    tall: float,
) -> Image:
    """The part of the backdrop around a random spot on the ground, scaled to a person `tall` there."""
    below = float(rng.uniform(0.35, 0.85)) * (BACKDROP[1] - camera.horizon)
    spot = (float(rng.uniform(0.15, 0.85)) * BACKDROP[0], camera.horizon + below)
    scale = tall / (0.85 * below)
    move = np.array([[scale, 0, foot[0] - scale * spot[0]], [0, scale, foot[1] - scale * spot[1]]])
    seen = cv2.warpAffine(
        camera.backdrop, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(seen, np.float32)


def _obstacle(rng: np.random.Generator, scene: Image) -> None:
    """A railing, bin or car roof before the legs."""
    height, width = scene.shape[:2]
    tone = float(rng.uniform(40, 190))
    colour = (tone, tone * float(rng.uniform(0.9, 1.05)), tone * float(rng.uniform(0.85, 1.1)))
    top = int(height * float(rng.uniform(0.66, 0.85)))
    left = int(width * float(rng.uniform(-0.4, 0.5)))
    right = left + int(width * float(rng.uniform(0.5, 1.0)))
    cv2.rectangle(scene, (left, top), (right, height), colour, -1)
    cv2.rectangle(scene, (left, top), (right, top + 3), (tone * 1.25,) * 3, -1)


def passers_by(
    rng: np.random.Generator, seed: int, dataset: str, odds: float
) -> tuple[Appearance, ...]:
    """With probability `odds`, one of two hundred people without name."""
    if rng.random() >= odds:
        return ()
    return (draw_appearance(seed, dataset, "stranger", int(rng.integers(200))),)
