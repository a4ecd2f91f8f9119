"""Writes a PoseTrack21 look-alike: frames of videos in `images/`, and `posetrack_person_search/*.json`.

The look: sports in the open, bright and colourful, by cameras that move. People come back from frame to
frame and from video to video; a crowd that nobody labelled is a region to ignore; one frame in four is not
labelled at all, and one has boxes without poses.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.miniature.encode import jpeg, put
from sharding.miniature.encounters import draw_people
from sharding.miniature.scenery import PLACES, draw_place
from sharding.miniature.scenes import Drawn, Look, draw_look, photograph
from sharding.miniature.world import (
    Box,
    MiniatureConfig,
    TruthImage,
    TruthPerson,
    draw_appearance,
    generator,
)

LOOK = Look(gains=(1.06, 1.0, 0.94), saturation=1.45, contrast=1.15, exposure=1.12, blur=0.6)
SIZE = (512, 288)
FRAMES = 8
"""Of a video."""
PEOPLE = 4
"""In a video; half of them are in the next one too."""
PLACES_OF = ("park", "square", "street")
FOLDERS = {"train": "bonn_train", "val": "mpii_test"}
FIRST_VIDEO = {"train": 1, "val": 342}
IDS = {"train": range(1656, 7530), "val": range(1, 1600)}
IN_BOTH = 1600
"""The one person of both splits."""
JOINTS = (
    *((0.5, 0.07), (0.5, 0.16), (0.5, 0.0), None, None, (0.7, 0.2), (0.3, 0.2), (0.78, 0.35)),
    *((0.22, 0.35), (0.8, 0.48), (0.2, 0.48), (0.62, 0.5), (0.38, 0.5), (0.62, 0.74)),
    *((0.38, 0.74), (0.62, 0.96), (0.38, 0.96)),
)
"""Where in a box: nose, neck, head, ears (never annotated), shoulders ... ankles, left and right."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class _Frame:
    image: NDArray[np.uint8]
    entry: Entry
    """As in `images`."""
    people: list[Entry]
    """As in `annotations`."""


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    folder = root / "posetrack21"
    counts = {
        "train": (config.posetrack21_train, config.posetrack21_train_identities),
        "val": (config.posetrack21_val, config.posetrack21_val_identities),
    }
    truth = []
    for split, (count, identities) in counts.items():
        ids = generator(config.seed, "posetrack21", split).permutation(IDS[split]).tolist()
        people = [IN_BOTH, *([0] if split == "val" else []), *ids][:identities]
        frames = [_draw_frame(config, split, people, index) for index in range(count)]
        for frame in frames:
            put(folder / frame.entry["file_name"], jpeg(frame.image, 88))
            truth.append(_truth(split, frame))
        _write_entries(folder, f"{split}.json", frames)
        if split == "val":
            _write_entries(folder, "query.json", _queries(frames))
    return truth


def _draw_frame(config: MiniatureConfig, split: str, people: list[int], index: int) -> _Frame:
    video, number = divmod(index, FRAMES)
    rng = generator(config.seed, "posetrack21", split, index)
    size = (round(SIZE[0] * config.scale), round(SIZE[1] * config.scale))
    horizon = size[1] * float(rng.uniform(0.28, 0.34))
    own = generator(config.seed, "posetrack21", split, "video", video)
    scene = draw_place(own, PLACES[PLACES_OF[video % len(PLACES_OF)]], size, horizon)
    look = draw_look(own, LOOK, 0.1 + 0.2 * config.difficulty)
    here = [
        people[(video * PEOPLE // 2 + i) % len(people)] for i in range(min(PEOPLE, len(people)))
    ]
    shown = [person for person in here if rng.random() < 0.8] or here[:1]
    names: list[tuple[object, ...]] = [("person", person) for person in shown]
    names += [("stranger", int(rng.integers(200)))]
    looks = [draw_appearance(config.seed, "posetrack21", *name) for name in names]
    drawn = draw_people(rng, scene, looks, horizon, float(rng.uniform(-1, 1)))
    entry = _frame_entry(split, video, number)
    if entry["has_labeled_person"]:
        x, y = _outline(drawn[-1].box)
        entry |= {"ignore_regions_x": [x], "ignore_regions_y": [y]}
    seen = [(person, figure) for person, figure in zip(shown, drawn) if figure.visible_box]
    annotations = [_annotation(entry, place, *one) for place, one in enumerate(seen)]
    return _Frame(
        photograph(rng, scene, look), entry, annotations if entry["has_labeled_person"] else []
    )


def _frame_entry(split: str, video: int, number: int) -> Entry:
    name = f"{FIRST_VIDEO[split] + video:06d}"
    frame_id = int(f"1{name}{number:04d}")
    return {
        "id": frame_id,
        "frame_id": frame_id,
        "vid_id": name,
        "file_name": f"images/{split}/{name}_{FOLDERS[split]}/{number:06d}.jpg",
        "nframes": FRAMES,
        "has_labeled_person": number % 4 != 3,
        "is_labeled": number % 4 not in (2, 3),
        "ignore_regions_x": [],
        "ignore_regions_y": [],
    }


def _outline(box: Box) -> tuple[list[float], list[float]]:
    """A box with its corners cut off, as x and y."""
    x1, y1, x2, y2 = box
    dx, dy = (x2 - x1) / 4, (y2 - y1) / 4
    x = [x1 + dx, x2 - dx, x2, x2, x2 - dx, x1 + dx, x1, x1]
    y = [y1, y1, y1 + dy, y2 - dy, y2, y2, y2 - dy, y1 + dy]
    return x, y


def _annotation(frame: Entry, place: int, person: int, figure: Drawn) -> Entry:
    x1, y1, x2, y2 = figure.box
    joints = [
        [0.0, 0.0, 0]
        if joint is None
        else [round(x1 + joint[0] * (x2 - x1), 2), round(y1 + joint[1] * (y2 - y1), 2), 1]
        for joint in JOINTS
    ]
    return {
        "bbox": _xywh(figure.box),
        "bbox_head": _xywh(figure.head),
        "category_id": 1,
        "id": frame["id"] * 100 + place,
        "image_id": frame["id"],
        "keypoints": [number for joint in joints for number in joint]
        if frame["is_labeled"]
        else [],
        "person_id": person,
        "track_id": place,
    }


def _xywh(box: Box) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _queries(frames: list[_Frame]) -> list[_Frame]:
    """Everybody who is in several frames, in the first of them: one person a frame."""
    seen: dict[int, list[tuple[_Frame, Entry]]] = {}
    for frame in frames:
        for entry in frame.people:
            seen.setdefault(entry["person_id"], []).append((frame, entry))
    asked_for: dict[int, _Frame] = {}
    for person in sorted(seen):
        if len(seen[person]) > 1:
            frame, entry = seen[person][0]
            first = asked_for.setdefault(frame.entry["id"], _Frame(frame.image, frame.entry, []))
            first.people.append(entry)
    return list(asked_for.values())


def _write_entries(folder: Path, name: str, frames: list[_Frame]) -> None:
    content = {
        "images": [frame.entry for frame in frames],
        "annotations": [entry for frame in frames for entry in frame.people],
        "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
    }
    put(folder / "posetrack_person_search" / name, json.dumps(content).encode())


def _truth(split: str, frame: _Frame) -> TruthImage:
    height, width = frame.image.shape[:2]
    persons = []
    for entry in frame.people:
        x, y, w, h = entry["bbox"]
        persons.append(TruthPerson((x, y, x + w, y + h), str(entry["person_id"])))
    for x, y in zip(frame.entry["ignore_regions_x"], frame.entry["ignore_regions_y"]):
        box = (min(x), min(y), max(x), max(y))
        persons.append(TruthPerson(box, kind="ignore_region", ignore=True))
    name = frame.entry["file_name"]
    return TruthImage("posetrack21", split, name, width, height, tuple(persons))
