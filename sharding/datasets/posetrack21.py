"""PoseTrack21 (Doering et al., CVPR 2022): person search in videos of sports and streets."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic import JsonValue, ValidationError

from pipeline.annotation import Box, Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import text
from sharding.datasets.base import FaultySample, Listing, Published, SourceSample
from sharding.datasets.boxes import count_people, has_area, keep_dropped
from sharding.datasets.protocol import ProtocolTable
from sharding.source import Source, SourceFile, find_root

FOLDER = "posetrack_person_search"
EXPECTED = (
    f"{FOLDER}/ with train.json, val.json and query.json, unpacked from posetrack21_annotations.zip, beside "
    "images/ or beside the parts posetrack18_images.tar.aa to .ar that hold it"
)
QUERIES = "query.json"
UNLABELLED = "not labelled"
NOBODY = "no person"
IGNORE_REGION = "ignore_region"
SPLITS: Mapping[str, tuple[Published, ...]] = {
    "train": (Published("identities", 5_474, "S"),),
    "val": (Published("identities", 1_656, "S"), Published("query identities", 1_313, "S")),
}

Entry = dict[str, Any]


@dataclass(frozen=True)
class _Entries:
    """An annotation file: its frames by id, and with each the boxes of people, as (where, entry)."""

    frames: dict[int, Entry]
    people: dict[int, list[tuple[str, Entry]]]


class PoseTrack21:
    """`val` is the gallery; query.json asks for people in it, of all frames but the query's own.

    `has_labeled_person` says whether a frame's boxes were drawn, `is_labeled` only whether poses were: the
    second decides where the first is absent. What is in other frames is unknown. They are left out, and so
    are frames without a box, which no gallery has. A region to ignore is a polygon: its bounding box is
    ignored, the polygon stays in `extra`, as keypoints stay with their person.

    Identities are numbered in the person-search files alone, differently from the pose files perhaps.
    """

    name = "posetrack21"
    task: Task = "search"
    licence = (
        "PoseTrack21: non-commercial research only, annotations given by the authors on a signed request, "
        "videos under the terms of PoseTrack18."
    )
    homepage = "https://github.com/anDoer/PoseTrack21"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        root = find_root(source, ("", "PoseTrack21", "posetrack21"), (FOLDER,), EXPECTED)
        entries = _read(source, f"{root}{FOLDER}/{split}.json")
        images = _find_images(source, root)
        samples: list[SourceSample] = []
        faulty: list[FaultySample] = []
        excluded = {UNLABELLED: 0, NOBODY: 0}
        for number, frame in entries.frames.items():
            people = entries.people.get(number, [])
            image = images.get(frame["file_name"])
            if not frame["labelled"]:
                excluded[UNLABELLED] += 1
            elif not people:
                excluded[NOBODY] += 1
            elif image is None:
                faulty.append(FaultySample(_key(split, frame["file_name"]), frame["file_name"]))
            else:
                samples.append(_sample(frame, people, image, split))
        found = {"images": len(entries.frames) - len(faulty), **count_people(samples)}
        protocols: dict[str, pa.Table] = {}
        if split == "val":
            queries = _read(source, f"{root}{FOLDER}/{QUERIES}")
            faulty += _foreign(queries, entries)
            protocols["PoseTrack21"] = _protocol(queries)
            asked_for = protocols["PoseTrack21"]["identity"]
            found |= {"queries": len(asked_for), "query identities": len(asked_for.unique())}
        total = len(samples) + len(faulty) + sum(excluded.values())
        excluded = {rule: frames for rule, frames in excluded.items() if frames}
        return Listing(samples, total, excluded, tuple(faulty), found, protocols)

    def read(self, source: Source, locator: str) -> bytes:
        return source.read(locator)


def _find_images(source: Source, root: str) -> dict[str, SourceFile]:
    """By `file_name`. Raises UserError if there is none."""
    for prefix in dict.fromkeys((root, "")):
        files = source.files(f"{prefix}images", ".jpg")
        if files:
            return {path.removeprefix(prefix): file for path, file in files.items()}
    folder = f"{root}images"
    raise UserError(
        f"{source.at(folder)} {source.describe(folder)}: no image there; expected {EXPECTED}."
    )


def _read(source: Source, path: str) -> _Entries:
    """Raises UserError naming the entry that is not as PoseTrack21's."""
    name = source.at(path)
    try:
        content = text.parse_object(text.read_text(source, path, f"Expected {EXPECTED}."))
    except ValueError as error:
        raise UserError(f"{name}: {error}; the file was cut or edited.") from None
    entries = _Entries({}, {})
    names = set()
    for place, frame in enumerate(_member(content, "images", list, name)):
        where = f"{name}, images[{place}]"
        number, file_name = (
            _member(frame, "id", int, where),
            _member(frame, "file_name", str, where),
        )
        if number in entries.frames or file_name in names:
            raise UserError(f"{where}: repeats the id or file_name of another frame.")
        names.add(file_name)
        entries.frames[number] = _check_frame(frame, where)
    for place, person in enumerate(_member(content, "annotations", list, name)):
        where = f"{name}, annotations[{place}]"
        number = _member(person, "image_id", int, where)
        if number not in entries.frames:
            raise UserError(f"{where}: no frame has its image_id {number}.")
        entries.people.setdefault(number, []).append((where, person))
    return entries


def _check_frame(frame: Entry, where: str) -> Entry:
    """With `labelled` and `regions`, as persons to ignore, added."""
    _member(frame, "vid_id", str, where)
    flag = "has_labeled_person" if "has_labeled_person" in frame else "is_labeled"
    try:
        # A single polygon may come without the list around it.
        sides = [frame.get(f"ignore_regions_{side}") or [] for side in "xy"]
        x, y = ([side] if side and not isinstance(side[0], list) else side for side in sides)
        regions = [_region(*polygon) for polygon in zip(x, y, strict=True)]
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: ignore_regions_x and ignore_regions_y are not the sides of the same polygons."
        ) from None
    return {**frame, "labelled": _member(frame, flag, bool, where), "regions": regions}


def _region(x: list[Any], y: list[Any]) -> Person:
    """Raises TypeError or ValueError."""
    if len(x) != len(y):
        raise ValueError(f"{len(x)} x and {len(y)} y")
    box = (min(x), min(y), max(x), max(y)) if x else (0.0, 0.0, 0.0, 0.0)
    return Person(box=box, ignore=True, category=IGNORE_REGION, extra={"x": x, "y": y})


def _member(entry: Any, name: str, kind: type, where: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if type(value) is not kind:
        raise UserError(
            f"{where}: {name!r} is missing or not a {kind.__name__}; not as PoseTrack21 writes it."
        )
    return value


def _key(split: str, file_name: str) -> str:
    path = file_name.removeprefix("images/").removeprefix(f"{split}/")
    return sample_key("posetrack21", split, path)


_FRAME_MEMBERS = ("file_name", "ignore_regions_x", "ignore_regions_y", "labelled", "regions")
_PERSON_MEMBERS = ("bbox", "person_id", "image_id", "category_id")


def _sample(
    frame: Entry, people: list[tuple[str, Entry]], image: SourceFile, split: str
) -> SourceSample:
    persons: list[Person] = []
    dropped: list[JsonValue] = []
    for where, entry in people:
        person = _person(entry, where)
        if has_area(person.box):
            persons.append(person)
        else:
            dropped.append(entry)
    for region in frame["regions"]:
        if has_area(region.box):
            persons.append(region)
        else:
            dropped.append(region.extra)
    extra = {name: value for name, value in frame.items() if name not in _FRAME_MEMBERS}
    return SourceSample(
        key=_key(split, frame["file_name"]),
        locator=image.locator,
        origin=frame["file_name"],
        size_bytes=image.size,
        persons=tuple(persons),
        extra=extra | keep_dropped(dropped),
    )


def _person(entry: Entry, where: str) -> Person:
    if "person_id" not in entry:
        raise UserError(
            f"{where} has no person_id: PoseTrack18 annotates so, and says nowhere who is who. Expected the "
            f"files of PoseTrack21, {EXPECTED}."
        )
    if entry.get("category_id", 1) != 1:
        raise UserError(
            f"{where}: category_id is {entry['category_id']}, and only 1, person, is known."
        )
    extra = {name: value for name, value in entry.items() if name not in _PERSON_MEMBERS}
    try:
        return Person(box=_box(entry, where), identity=_identity(entry, where), extra=extra)
    except ValidationError as error:
        raise UserError(f"{where}: not as PoseTrack21 writes it: {error}.") from None


def _identity(entry: Entry, where: str) -> str:
    return f"search:{_member(entry, 'person_id', int, where)}"


def _box(entry: Entry, where: str) -> Box:
    """[x, y, width, height] as a half-open box, wherever it leaves the frame."""
    try:
        x, y, width, height = (float(number) for number in entry["bbox"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where}: bbox is not four numbers x, y, width, height.") from None
    return (x, y, x + width, y + height)


def _foreign(queries: _Entries, gallery: _Entries) -> list[FaultySample]:
    """Frames that are asked for and are not in the split: no search can have them."""
    listed = {frame["file_name"] for frame in gallery.frames.values()}
    names = (queries.frames[number]["file_name"] for number in queries.people)
    reason = f"named by {QUERIES} and not by val.json"
    return [FaultySample(_key("val", name), name, reason) for name in names if name not in listed]


def _protocol(queries: _Entries) -> pa.Table:
    protocol = ProtocolTable(partial(_key, "val"))
    for number, people in queries.people.items():
        image = queries.frames[number]["file_name"]
        for where, entry in people:
            person = _person(entry, where)
            raw = entry["person_id"]
            name = f"{raw}_{image.removeprefix('images/').removesuffix('.jpg')}"
            protocol.add(name, image, person.box, f"search:{raw}")
    return protocol.table()
