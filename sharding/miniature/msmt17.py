"""Writes an MSMT17 (V1) look-alike: `MSMT17_V1/{train,test}/pid/*.jpg` and its four lists.

The look: a campus seen by fifteen cameras, three of them indoors, at three times of four days.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sharding.miniature.crops import Camera, draw_crop, draw_stranger, make_camera
from sharding.miniature.encode import damaged, jpeg, truncated
from sharding.miniature.scenes import Look
from sharding.miniature.world import (
    Appearance,
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


@dataclass(frozen=True)
class _Crop:
    """One picture of one person: by which camera, when, and in which list it goes."""

    list_name: str
    camera: int
    moment: str
    name: str
    """Path below train/ or test/."""


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    folder = root / "msmt17" / "MSMT17_V1"
    cameras = [
        make_camera(config.seed, place, LOOK, 0.5 * config.difficulty, "msmt17", number)
        for number, place in enumerate(PLACES, start=1)
    ]
    truth: list[TruthImage] = []
    halves = (("train", config.msmt17_train_identities), ("test", config.msmt17_test_identities))
    for half, identities in halves:
        total = identities * config.crops_per_identity
        broken = damaged(generator(config.seed, "msmt17", "damage"), total, config.corrupt)
        lists: dict[str, list[str]] = (
            {"train": [], "val": []} if half == "train" else {"query": [], "gallery": []}
        )
        position = 0
        for pid in range(identities):
            (folder / half / f"{pid:04d}").mkdir(parents=True, exist_ok=True)
            person = draw_appearance(config.seed, "msmt17", half, pid)
            for crop in _plan_crops(config, half, pid):
                corrupt = half == "train" and position in broken
                image = _write_crop(folder / half, config, cameras[crop.camera - 1], person, crop)
                if corrupt:
                    path = folder / half / crop.name
                    path.write_bytes(truncated(path.read_bytes()))
                whole = (0.0, 0.0, float(image[0]), float(image[1]))
                lists[crop.list_name].append(f"{crop.name} {pid}\n")
                persons = (TruthPerson(whole, f"{pid:04d}", camera=f"{crop.camera:02d}"),)
                name = f"MSMT17_V1/{half}/{crop.name}"
                truth.append(TruthImage("msmt17", crop.list_name, name, *image, persons, corrupt))
                position += 1
        for list_name, lines in lists.items():
            (folder / f"list_{list_name}.txt").write_text("".join(lines), newline="\n")
    return truth


def _plan_crops(config: MiniatureConfig, half: str, pid: int) -> list[_Crop]:
    """At least three cameras a person; of test people, one query from each of two cameras."""
    rng = generator(config.seed, "msmt17", half, pid, "plan")
    seen_by = rng.permutation(15)[: rng.integers(3, 6)] + 1
    crops = []
    queried: set[int] = set()
    for index in range(config.crops_per_identity):
        camera = int(seen_by[index % len(seen_by)])
        moment = f"{rng.choice(DAYS)}{rng.choice(list(LIGHT))}"
        name = f"{pid:04d}_{index:03d}_{camera:02d}_{moment}_{rng.integers(2000):04d}_{rng.integers(14)}"
        if rng.random() < 0.42:
            name += "_ex"
        if half == "train":
            list_name = "val" if index == config.crops_per_identity - 1 and pid % 2 else "train"
        else:
            list_name = "query" if len(queried) < 2 and camera not in queried else "gallery"
            queried.add(camera) if list_name == "query" else None
        crops.append(_Crop(list_name, camera, moment[4:], f"{pid:04d}/{name}.jpg"))
    return crops


def _write_crop(
    folder: Path, config: MiniatureConfig, camera: Camera, person: Appearance, crop: _Crop
) -> tuple[int, int]:
    """Returns width and height."""
    rng = generator(config.seed, "msmt17", folder.name, crop.name)
    height = round(float(rng.uniform(128, 208)) * config.scale)
    width = round(height * float(rng.uniform(0.36, 0.5)))
    exposure, gains = LIGHT[crop.moment]
    r, g, b = np.array(camera.look.gains) * gains
    look = replace(
        camera.look, exposure=camera.look.exposure * exposure, gains=(float(r), float(g), float(b))
    )
    stranger = draw_stranger(rng, config.seed, "msmt17", 0.2 + 0.4 * config.difficulty)
    image = draw_crop(
        rng, replace(camera, look=look), person, (width, height), config.difficulty, stranger
    )
    (folder / crop.name).write_bytes(jpeg(image, 88))
    return width, height
