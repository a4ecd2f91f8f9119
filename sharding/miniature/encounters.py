"""Pictures of person-search sets: people who come back from picture to picture, among strangers."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from sharding.miniature.drawing import draw_person
from sharding.miniature.scenes import Drawn, compose
from sharding.miniature.sprites import Image
from sharding.miniature.world import Appearance, draw_pose

Somebody = TypeVar("Somebody")


def deal(
    rng: np.random.Generator, people: Sequence[Somebody], pictures: int
) -> list[list[Somebody]]:
    """Two or three of `people` for each picture, and nobody much more often than others."""
    hands: list[list[Somebody]] = []
    deck: list[int] = []
    for _ in range(pictures):
        hand: set[int] = set()
        size = min(int(rng.integers(2, 4)), len(people))
        while len(hand) < size:
            deck = deck or rng.permutation(len(people)).tolist()
            hand.add(deck.pop())
        hands.append([people[number] for number in sorted(hand)])
    return hands


def draw_people(
    rng: np.random.Generator,
    scene: Image,
    people: Sequence[Appearance],
    horizon: float,
    light: float,
    pitch: float = 0.0,
) -> list[Drawn]:
    """Paints `people` side by side into `scene`, far to near, and says what is seen of each."""
    height, width = scene.shape[:2]
    talls = sorted(rng.uniform(0.3, 0.66, len(people)).tolist())
    places = (rng.permutation(len(people)) + rng.uniform(0.1, 0.9, len(people))) / len(people)
    sprites = []
    for person, share, place in zip(people, talls, places, strict=True):
        tall = share * height * person.stature
        foot = (
            (1.08 * float(place) - 0.04) * width,
            horizon + tall * float(rng.uniform(0.95, 1.1)),
        )
        sprites.append((draw_person(person, draw_pose(rng, pitch=pitch), tall, light), foot, tall))
    return compose(scene, sprites)
