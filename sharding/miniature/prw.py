"""Writes a PRW look-alike: `PRW-v16.04.20/{frames,annotations,query_box}/`, .mat lists and query_info.txt.

The look: a campus in the summer under six fixed cameras, the sixth an older and smaller one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding.miniature.crops import Camera
from sharding.miniature.encode import jpeg, put
from sharding.miniature.encounters import deal, draw_people
from sharding.miniature.matlab import cell, write_mat
from sharding.miniature.scenery import PLACES, draw_place
from sharding.miniature.scenes import Look, draw_look, photograph
from sharding.miniature.world import (
    Box,
    MiniatureConfig,
    TruthImage,
    TruthPerson,
    draw_appearance,
    generator,
)

FOLDER = "PRW-v16.04.20"
LOOK = Look(gains=(0.97, 1.03, 0.97), saturation=1.08, contrast=1.12, exposure=1.1, noise=1.6)
CAMERAS = ("campus", "campus", "walkway", "campus", "park", "street")
SIZE, SIZE_OF_SIXTH = (512, 288), (384, 308)
"""In the aspects of 1920 x 1080 and 720 x 576."""
VARIABLES = ("box_new", "anno_file", "anno_previous")
NOBODY = -2
"""The id of a person whom nobody recognised."""
HIGHEST_ID = 933


@dataclass(frozen=True)
class _Row:
    """A line of a frame's annotation."""

    person: int
    box: Box

    @property
    def xywh(self) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = self.box
        return (x1, y1, x2 - x1, y2 - y1)


@dataclass(frozen=True)
class _Frame:
    name: str
    camera: int
    image: NDArray[np.uint8]
    rows: list[_Row]


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    folder = root / "prw" / FOLDER
    ids = generator(config.seed, "prw", "ids").permutation(HIGHEST_ID) + 1
    known = min(config.prw_train_identities, config.prw_train)
    train = sorted(ids[:known].tolist())
    asked_for = min(config.prw_test_identities, config.prw_test)
    test = sorted(ids[known : known + asked_for].tolist())
    cameras = [_make_camera(config, number) for number in range(1, len(CAMERAS) + 1)]
    frames = {
        "train": _draw_frames(config, cameras, train, [], config.prw_train, 0),
        "test": _draw_frames(config, cameras, test, train, config.prw_test, config.prw_train),
    }
    for split, drawn in frames.items():
        for index, frame in enumerate(drawn):
            put(folder / "frames" / f"{frame.name}.jpg", jpeg(frame.image, 90))
            rows = np.array([(row.person, *row.xywh) for row in frame.rows], np.float64)
            path = folder / "annotations" / f"{frame.name}.jpg.mat"
            write_mat(path, VARIABLES[index % len(VARIABLES)], rows.reshape(-1, 5))
        names = cell([frame.name for frame in drawn])
        write_mat(folder / f"frame_{split}.mat", f"img_index_{split}", names)
    write_mat(folder / "ID_train.mat", "ID_train", np.array([train], np.float64))
    write_mat(folder / "ID_test.mat", "ID_test2", np.array([test], np.float64))
    _write_queries(folder, frames["test"], test)
    return [_truth(split, frame) for split, drawn in frames.items() for frame in drawn]


def _make_camera(config: MiniatureConfig, number: int) -> Camera:
    rng = generator(config.seed, "camera", "prw", number)
    size = SIZE_OF_SIXTH if number == len(CAMERAS) else SIZE
    width, height = (round(side * config.scale) for side in size)
    horizon = height * float(rng.uniform(0.24, 0.36))
    backdrop = draw_place(rng, PLACES[CAMERAS[number - 1]], (width, height), horizon)
    look = draw_look(rng, LOOK, 0.34 * config.difficulty)
    pitch, light = float(rng.uniform(0.05, 0.25)), float(rng.uniform(-1, 1))
    return Camera(backdrop, horizon, look, pitch, light)


def _draw_frames(
    config: MiniatureConfig,
    cameras: list[Camera],
    people: list[int],
    visitors: list[int],
    count: int,
    first: int,
) -> list[_Frame]:
    """`visitors` come by now and then. `first` is how many frames other splits have."""
    rng = generator(config.seed, "prw", "who", first)
    hands = deal(rng, people, count)
    for hand in hands[1::3]:
        hand += [int(rng.choice(visitors))] if visitors else []
    return [
        _draw_frame(config, cameras, hand, first + index, twice=index == 1)
        for index, hand in enumerate(hands)
    ]


def _draw_frame(
    config: MiniatureConfig, cameras: list[Camera], hand: list[int], index: int, twice: bool
) -> _Frame:
    """With `twice`, a stranger is taken for one of those of `hand`, as happens in the release."""
    rng = generator(config.seed, "prw", index)
    number = index % len(cameras) + 1
    camera = cameras[number - 1]
    strangers = rng.integers(200, size=int(rng.integers(1, 4)))
    people: list[tuple[int, tuple[object, ...]]] = [(person, ("person", person)) for person in hand]
    for place, stranger in enumerate(strangers):
        person = hand[0] if twice and place == 0 else NOBODY
        people.append((person, ("stranger", stranger)))
    people = [people[i] for i in rng.permutation(len(people))]
    looks = [draw_appearance(config.seed, "prw", *names) for _, names in people]
    scene = camera.backdrop.copy()
    light = float(np.clip(camera.light + rng.normal(0, 0.2), -1, 1))
    drawn = draw_people(rng, scene, looks, camera.horizon, light, camera.pitch)
    rows = []
    for (person, _), figure in zip(people, drawn, strict=True):
        if figure.visible_box is None:
            continue
        x1, y1, x2, y2 = (float(v) for v in np.array(figure.box) + rng.uniform(-0.5, 0.5, 4))
        known = person if figure.visible_share >= 0.4 else NOBODY
        rows.append(_Row(known, (x1, y1, x2, y2)))
    name = f"c{number}s{index // 40 + 1}_{25 * (37 * index + int(rng.integers(37))):06d}"
    return _Frame(name, number, photograph(rng, scene, camera.look), rows)


def _write_queries(folder: Path, frames: list[_Frame], people: list[int]) -> None:
    """A query of each person from each camera, if there is another frame to find the person in."""
    lines = []
    for person in people:
        seen = [(frame, row) for frame in frames for row in frame.rows if row.person == person]
        if len({frame.name for frame, _ in seen}) < 2:
            continue
        by_camera = {frame.camera: (frame, row) for frame, row in reversed(seen)}
        for _, (frame, row) in sorted(by_camera.items()):
            numbers = " ".join(f"{number:.4f}" for number in row.xywh)
            lines.append(f"{person} {numbers} {frame.name}\r\n")
            x1, y1, x2, y2 = (max(round(side), 0) for side in row.box)
            name = f"{person}_{frame.name}.jpg"
            put(folder / "query_box" / name, jpeg(frame.image[y1:y2, x1:x2], 90))
    put(folder / "query_info.txt", "".join(lines).encode())


def _truth(split: str, frame: _Frame) -> TruthImage:
    height, width = frame.image.shape[:2]
    persons = []
    for row in frame.rows:
        x, y, w, h = row.xywh
        identity = str(row.person) if row.person != NOBODY else None
        persons.append(TruthPerson((x, y, x + w, y + h), identity, camera=str(frame.camera)))
    name = f"{FOLDER}/frames/{frame.name}.jpg"
    return TruthImage("prw", split, name, width, height, tuple(persons))
