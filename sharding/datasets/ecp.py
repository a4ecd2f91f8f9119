"""EuroCity Persons (Braun et al., TPAMI 2019): street scenes of 31 cities, by day and by night."""

from collections.abc import Mapping
from typing import Any

from pipeline.annotation import Box, Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import text
from sharding.datasets.base import FaultySample, Listing, Published, SourceSample, read_samples
from sharding.datasets.boxes import count_boxes, has_area, keep_dropped
from sharding.source import Source, SourceFile, find_root

VEHICLES = frozenset(("bicycle", "buggy", "motorbike", "scooter", "tricycle", "wheelchair"))
NOT_PERSONS = VEHICLES | {f"{vehicle}-group" for vehicle in VEHICLES}
IGNORED_TAGS = frozenset(("sitting-lying", "behind-glass", "depiction"))
"""The evaluator ignores the first two; a depiction is no person, but no background either."""
NO_PEDESTRIAN = "no pedestrian"
SPLITS: Mapping[str, tuple[Published, ...]] = {
    "day_train": (
        Published("images", 23_892, "R"),
        Published("images with pedestrians", 21_795, "R"),
    ),
    "day_val": (Published("images", 4_266, "R"),),
    "night_train": (Published("images", 4_222, "R"),),
    "night_val": (Published("images", 770, "R"),),
}


class EuroCityPersons:
    """Pedestrians are persons; riders, far-away groups and what has no known identity are ignored.

    Vehicles are neither: they stay verbatim in `extra`, those of a rider with the rider. Frames without
    a pedestrian are left out and counted, as the pre-training recipe does.
    """

    name = "ecp"
    task: Task = "detection"
    licence = (
        "EuroCity Persons: granted to each applicant for academic use and a limited term; neither data "
        "nor anything that labels can be recovered from may be passed on; GDPR duties apply."
    )
    homepage = "https://eurocity-dataset.tudelft.nl"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        time, part = split.split("_")
        expected = (
            f"ECP/{time}/img/{part}/ and ECP/{time}/labels/{part}/, with or without the folder ECP, "
            f"from ECP_{time}_img_{part}.zip and ECP_{time}_labels_{part}.zip"
        )
        root = find_root(source, ("", "ECP", "data"), ("day", "night"), expected)
        labels = _of_cities(source, f"{root}{time}/labels/{part}", ".json", expected)
        images = _of_cities(source, f"{root}{time}/img/{part}", ".png", expected)
        return _list(source, labels, images, split)

    def read(self, source: Source, locator: str) -> bytes:
        return source.read(locator)


def _of_cities(source: Source, path: str, suffix: str, expected: str) -> dict[str, SourceFile]:
    """`city/city_00000` -> its file of all cities in the folder `path`. Raises UserError if none."""
    files = {
        name.removeprefix(f"{path}/").removesuffix(suffix): file
        for name, file in source.files(path, suffix).items()
        if name.removeprefix(f"{path}/").count("/") == 1
    }
    if not files:
        raise UserError(
            f"{source.at(path)} {source.describe(path)}: no frame of a city there; expected {expected}."
        )
    return files


def _list(
    source: Source, labels: dict[str, SourceFile], images: dict[str, SourceFile], split: str
) -> Listing:
    frames = sorted(labels.keys() | images.keys())
    samples, faulty = read_samples(
        source,
        lambda name: _listed(source, name, split, labels.get(name), images.get(name)),
        frames,
    )
    kept = [sample for sample in samples if any(not person.ignore for person in sample.persons)]
    return Listing(
        kept,
        len(frames),
        excluded={NO_PEDESTRIAN: len(samples) - len(kept)},
        faulty=tuple(faulty),
        found={
            "images": len(samples),
            "images with pedestrians": len(kept),
            **count_boxes(samples),
        },
    )


def _listed(
    source: Source, name: str, split: str, label: SourceFile | None, image: SourceFile | None
) -> SourceSample | FaultySample:
    time, part = split.split("_")
    key, label_path = _key(split, f"{name}.png"), f"{time}/labels/{part}/{name}.json"
    if image is None:
        return FaultySample(key, f"{time}/img/{part}/{name}.png")
    if label is None:
        return FaultySample(key, label_path)
    try:
        return _sample(_frame(source.read(label.locator)), f"{name}.png", split, image)
    except ValueError as error:
        return FaultySample(key, label_path, f"damaged label file: {error}")


def _key(split: str, image: str) -> str:
    return sample_key("ecp", split, image)


def _frame(label: bytes) -> dict[str, Any]:
    """The frame of a label file, out of any `@converter` or `seqlist` levels around it.

    Raises ValueError if there is none.
    """
    node: Any = text.parse_object(label.decode("utf-8-sig"))
    while isinstance(node, dict) and node.get("identity") != "frame":
        node = node.get("children")
        if isinstance(node, list):
            node = node[0] if len(node) == 1 else None
    if not isinstance(node, dict):
        raise ValueError("holds no object with identity 'frame'")
    return node


def _sample(frame: dict[str, Any], image: str, split: str, file: SourceFile) -> SourceSample:
    """Raises ValueError if `frame` is not one as ECP labels them."""
    time, part = split.split("_")
    dropped: list[Any] = []
    try:
        persons, others = _collect(frame["children"], dropped)
        extra = {key: frame[key] for key in frame if key not in _FRAME_MEMBERS}
        return SourceSample(
            key=_key(split, image),
            locator=file.locator,
            origin=f"{time}/img/{part}/{image}",
            size_bytes=file.size,
            persons=tuple(persons),
            expected_size=(int(frame["imagewidth"]), int(frame["imageheight"])),
            tags=tuple(str(tag).strip() for tag in frame.get("tags") or ()),
            extra=extra | ({"other_objects": others} if others else {}) | keep_dropped(dropped),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = str(error).splitlines()[0] if str(error) else "no more is known"
        raise ValueError(f"not a frame as ECP labels it ({type(error).__name__}: {what})") from None


_FRAME_MEMBERS = ("identity", "imagewidth", "imageheight", "tags", "children")
_OBJECT_MEMBERS = ("identity", "x0", "y0", "x1", "y1", "tags", "children")


def _collect(objects: list[dict[str, Any]], dropped: list[Any]) -> tuple[list[Person], list[Any]]:
    """All people at any depth, and the vehicles that belong to nobody among `objects`, verbatim."""
    persons: list[Person] = []
    others: list[Any] = []
    for entry in objects:
        inner_persons, inner_others = _collect(entry.get("children") or [], dropped)
        identity = (entry.get("identity") or "unknown").strip()
        alone = {key: value for key, value in entry.items() if key != "children"}
        if identity in NOT_PERSONS:
            others += [alone, *inner_others]
        elif has_area(box := _box(entry)):
            persons.append(_person(entry, identity, box, inner_others))
        else:
            dropped.append(alone)
            others += inner_others
        persons += inner_persons
    return persons, others


def _box(entry: dict[str, Any]) -> Box:
    return (float(entry["x0"]), float(entry["y0"]), float(entry["x1"]), float(entry["y1"]))


def _person(entry: dict[str, Any], identity: str, box: Box, vehicles: list[Any]) -> Person:
    # The documentation prints blanks inside some tags (`truncated >40`), the files mostly do not.
    tags = tuple("".join(tag.split()) for tag in entry.get("tags") or ())
    occlusion = [tag.removeprefix("occluded") for tag in tags if tag.startswith("occluded")]
    extra = {key: value for key, value in entry.items() if key not in _OBJECT_MEMBERS}
    return Person(
        box=box,
        ignore=identity != "pedestrian" or not IGNORED_TAGS.isdisjoint(tags),
        category=identity,
        occlusion=occlusion[0] if occlusion else None,
        tags=tags,
        extra=extra | ({"vehicles": vehicles} if vehicles else {}),
    )
