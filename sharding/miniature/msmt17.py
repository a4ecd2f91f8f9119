"""Writes an MSMT17 (V1) look-alike: `MSMT17_V1/{train,test}/pid/*.jpg` and its four lists.

The look: a campus seen by fifteen cameras, three of them indoors, at three times of four days.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding.miniature.crops import Camera, draw_crop, make_camera, passers_by
from sharding.miniature.encode import damaged, jpeg, put, truncated
from sharding.miniature.scenes import Look
from sharding.miniature.world import (
    MiniatureConfig,
    TruthImage,
    TruthPerson,
    draw_appearance,
    generator,
)

LOOK = Look(gains=(1.0, 1.03, 0.92), saturation=0.95, contrast=0.96, blur=0.5, noise=3.0)
PLACES = ("campus", "walkway", "street", "park") * 3 + ("hall", "station", "hall")
DAYS = ("0113", "0114", "0302", "0303")
LIGHT = {
    "morning": (1.02, (1.05, 1.0, 0.93)),
    "noon": (1.14, (1.0, 1.0, 1.0)),
    "afternoon": (0.82, (1.1, 0.98, 0.84)),
}


HALVES = {"train": ("train", "val"), "test": ("query", "gallery")}
"""The lists that name the pictures of each image folder."""


@dataclass(frozen=True)
class _Crop:
    """One picture of one person: by which camera, when, and in which list it goes."""

    pid: int
    list_name: str
    camera: int
    daytime: str
    name: str
    """Path below train/ or test/."""


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    folder = root / "msmt17" / "MSMT17_V1"
    cameras = [
        make_camera(config.seed, place, LOOK, 0.34 * config.difficulty, "msmt17", number)
        for number, place in enumerate(PLACES, start=1)
    ]
    truth: list[TruthImage] = []
    for half, lists in HALVES.items():
        crops = _plan_half(config, half)
        rng = generator(config.seed, "msmt17", "damage")
        broken = damaged(rng, len(crops), config.corrupt if half == "train" else 0)
        for position, crop in enumerate(crops):
            image = _draw(config, cameras[crop.camera - 1], half, crop)
            corrupt = position in broken
            data = jpeg(image, 88)
            put(folder / half / crop.name, truncated(data) if corrupt else data)
            truth.append(_truth(half, crop, image, corrupt))
        for list_name in lists:
            lines = [f"{crop.name} {crop.pid}\n" for crop in crops if crop.list_name == list_name]
            put(folder / f"list_{list_name}.txt", "".join(lines).encode())
    return truth


def _truth(half: str, crop: _Crop, image: NDArray[np.uint8], corrupt: bool) -> TruthImage:
    height, width = image.shape[:2]
    box = (0.0, 0.0, float(width), float(height))
    persons = (TruthPerson(box, f"{crop.pid:04d}", camera=f"{crop.camera:02d}"),)
    name = f"MSMT17_V1/{half}/{crop.name}"
    return TruthImage("msmt17", crop.list_name, name, width, height, persons, corrupt)


def _plan_half(config: MiniatureConfig, half: str) -> list[_Crop]:
    train = half == "train"
    identities = config.msmt17_train_identities if train else config.msmt17_test_identities
    return [crop for pid in range(identities) for crop in _plan_person(config, half, pid)]


def _plan_person(config: MiniatureConfig, half: str, pid: int) -> list[_Crop]:
    """At least three cameras a person; of test people, a query from each of two of them."""
    rng = generator(config.seed, "msmt17", half, pid, "plan")
    seen_by = (rng.permutation(15)[: rng.integers(3, 6)] + 1).tolist()
    crops = []
    for index in range(config.crops_per_identity):
        camera = seen_by[index % len(seen_by)]
        daytime = str(rng.choice(list(LIGHT)))
        moment = f"{rng.choice(DAYS)}{daytime}_{rng.integers(2000):04d}_{rng.integers(14)}"
        name = f"{pid:04d}_{index:03d}_{camera:02d}_{moment}"
        if rng.random() < 0.42:
            name += "_ex"
        if half == "train":
            list_name = "val" if index == config.crops_per_identity - 1 and pid % 2 else "train"
        else:
            list_name = "query" if index < 2 else "gallery"
        crops.append(_Crop(pid, list_name, camera, daytime, f"{pid:04d}/{name}.jpg"))
    return crops


def _draw(config: MiniatureConfig, camera: Camera, half: str, crop: _Crop) -> NDArray[np.uint8]:
    rng = generator(config.seed, "msmt17", half, crop.name)
    height = round(float(rng.uniform(128, 208)) * config.scale)
    width = round(height * float(rng.uniform(0.36, 0.5)))
    person = draw_appearance(config.seed, "msmt17", half, crop.pid)
    exposure, gains = LIGHT[crop.daytime]
    r, g, b = np.array(camera.look.gains) * gains
    look = replace(
        camera.look, exposure=camera.look.exposure * exposure, gains=(float(r), float(g), float(b))
    )
    stranger = passers_by(rng, config.seed, "msmt17", 0.2 + 0.4 * config.difficulty)
    size = (width, height)
    return draw_crop(rng, replace(camera, look=look), person, size, config.difficulty, stranger)
