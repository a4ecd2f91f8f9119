"""CUHK-SYSU (Xiao et al., CVPR 2017): person search in street snapshots and films."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from pydantic import JsonValue

from pipeline.annotation import Box, Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import matlab, text
from sharding.datasets.base import FaultySample, Listing, Published, SourceSample
from sharding.datasets.boxes import count_people, has_area, keep_dropped
from sharding.datasets.matlab import Matrix
from sharding.datasets.protocol import ProtocolTable
from sharding.source import Source, SourceFile, find_root, require

EXPECTED = "the release's folders annotation/ (with Images.mat, pool.mat and test/train_test/) and Image/SSM/"
ADVICE = f"Expected {EXPECTED}."
FOLDER = "Image/SSM"
NAME = re.compile(r"[A-Za-z0-9_-]+\.jpg")
IMAGES, POOL, PERSONS = "annotation/Images.mat", "annotation/pool.mat", "annotation/Person.mat"
TRAIN = "annotation/test/train_test/Train.mat"
GALLERIES: Mapping[str, tuple[str, str]] = {
    f"TestG{size}": (f"annotation/test/train_test/TestG{size}.mat", f"TestG{size}")
    for size in (50, 100, 500, 1000, 2000, 4000)
}
"""Protocol -> its file and the variable in it."""
SUBSETS: Mapping[str, tuple[str, str]] = {
    "Occlusion": ("annotation/test/subset/Occlusion.mat", "Occlusion1"),
    "Resolution": ("annotation/test/subset/Resolution.mat", "Test_Size"),
}
SPLITS: Mapping[str, tuple[Published, ...]] = {
    "train": (
        Published("images", 11_206, "V"),
        Published("persons", 55_272, "S"),
        Published("labelled persons", 15_085, "S"),
        Published("identities", 5_532, "S"),
    ),
    "test": (
        Published("images", 6_978, "V"),
        Published("persons", 40_871, "S"),
        Published("labelled persons", 8_345, "S"),
        Published("identities", 2_900, "S"),
        Published("queries", 2_900, "V"),
        Published("protocols", 8, "S"),
    ),
}

Numbers = tuple[float, ...]
"""x, y, width, height as the source has them."""
Names = dict[str, dict[Numbers, list[str]]]
"""Image -> box -> who that is."""


class _Entry(NamedTuple):
    """A box of Images.mat."""

    numbers: Numbers
    hard: bool


class CuhkSysu:
    """Boxes are `idlocate`: x, y, width, height, whose x and y MATLAB counts from 1. They are lowered by 1
    here, in galleries too, which most loaders leave out (a shift by one pixel); `extra` keeps the numbers.

    `idname` is who somebody is. Images.mat names nobody: names come from Train.mat and from the test
    protocols by image and exact box. Person.mat knows more people than the benchmark uses; they stay
    unlabelled, as everywhere, and `extra` keeps their names. Boxes that have two names stay unlabelled.

    A gallery holds what its file says: even the query's own image, where an evaluator has to pass over it.
    """

    name = "cuhk_sysu"
    task: Task = "search"
    licence = (
        "CUHK-SYSU: academic research only, not redistributable, given by the authors on request."
    )
    homepage = "https://github.com/ShuangLI59/person_search"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        inside = ("", "dataset", "CUHK-SYSU", "cuhk_sysu")
        root = find_root(source, inside, ("annotation", "Image"), EXPECTED)
        pool = _read_pool(source, root)
        boxes = _read_images(source, root)
        protocols: dict[str, ProtocolTable] = {}
        names: Names = {}
        if split == "test":
            images = pool
            protocols = _read_protocols(source, root, names)
        else:
            images = {image: None for image in boxes if image not in pool}
            _read_people(source, f"{root}{TRAIN}", "Train", names)
        labels = _Labels(boxes, names, _read_others(source, root))
        samples, faulty = _list(images, _find_images(source, root), labels, split)
        faulty += _foreign(protocols, pool)
        found = {"images": len(samples), **count_people(samples)}
        if protocols:
            found["queries"] = max(len(protocols[name]) for name in GALLERIES if name in protocols)
            found["protocols"] = len(protocols)
        return Listing(
            samples,
            len(samples) + len(faulty),
            faulty=tuple(faulty),
            found=found,
            protocols={name: protocol.table() for name, protocol in protocols.items()},
        )

    def read(self, source: Source, locator: str) -> bytes:
        return source.read(locator)


def _find_images(source: Source, root: str) -> dict[str, SourceFile]:
    """By name. Raises UserError if there is none."""
    folder = f"{root}{FOLDER}"
    files = {
        path.removeprefix(f"{folder}/"): file for path, file in source.files(folder, ".jpg").items()
    }
    if not files:
        raise UserError(
            f"{source.at(folder)} {source.describe(folder)}: no image there; expected {EXPECTED}."
        )
    return files


def _read_pool(source: Source, root: str) -> dict[str, None]:
    path = f"{root}{POOL}"
    cells = matlab.load(source, path, "pool", ADVICE)
    with matlab.naming(source, path):
        return dict.fromkeys(_image(cell) for cell in cells.cells())


def _read_images(source: Source, root: str) -> dict[str, list[_Entry]]:
    """The boxes of every image of both splits."""
    path = f"{root}{IMAGES}"
    table = matlab.load(source, path, "Img", ADVICE)
    boxes: dict[str, list[_Entry]] = {}
    with matlab.naming(source, path):
        for row in table.structs():
            image = _image(row["imname"])
            if image in boxes:
                raise ValueError(f"it lists {image} twice")
            boxes[image] = [_entry(box) for box in row["box"].structs()]
    return boxes


def _entry(box: Mapping[str, Matrix]) -> _Entry:
    return _Entry(_numbers(box["idlocate"]), bool(box["ishard"].numbers().any()))


def _image(name: Matrix) -> str:
    """Raises ValueError unless it is a name that makes a key of its own."""
    image = name.text()
    if not NAME.fullmatch(image):
        raise ValueError(f"{image!r} is not named as CUHK-SYSU names its images (s1.jpg)")
    return image


def _numbers(idlocate: Matrix) -> Numbers:
    """As Python's numbers: one box is stored in uint8, another in uint16, and the sums overflow."""
    numbers = tuple(idlocate.numbers().ravel().tolist())
    if len(numbers) != 4:
        raise ValueError(f"an idlocate of {len(numbers)} numbers")
    return numbers


def _box(numbers: Numbers) -> Box:
    x, y, width, height = (float(number) for number in numbers)
    return (x - 1, y - 1, x - 1 + width, y - 1 + height)


def _read_people(source: Source, path: str, variable: str, names: Names) -> None:
    """Adds the people of Train.mat or Person.mat to `names`, scene by scene."""
    people = matlab.load(source, path, variable, ADVICE)
    with matlab.naming(source, path):
        for person in people.structs():
            idname = person["idname"].text()
            for scene in person["scene"].structs():
                if not scene["idlocate"].is_empty():
                    _add(names, _image(scene["imname"]), _numbers(scene["idlocate"]), idname)


def _add(names: Names, image: str, numbers: Numbers, idname: str) -> None:
    known = names.setdefault(image, {}).setdefault(numbers, [])
    if idname not in known:
        known.append(idname)


def _read_others(source: Source, root: str) -> Names:
    """The people of Person.mat, which copies made for training may lack."""
    names: Names = {}
    if source.find(f"{root}{PERSONS}"):
        _read_people(source, f"{root}{PERSONS}", "Person", names)
    return names


def _read_protocols(source: Source, root: str, names: Names) -> dict[str, ProtocolTable]:
    """Those whose files are there. Raises UserError if there is none; adds their people to `names`."""
    protocols = {}
    for name, (path, variable) in {**GALLERIES, **SUBSETS}.items():
        if source.find(f"{root}{path}"):
            people = names if name in GALLERIES else {}
            protocols[name] = _read_protocol(source, f"{root}{path}", variable, people)
    if not protocols.keys() & GALLERIES.keys():
        require(source, f"{root}{GALLERIES['TestG100'][0]}", ADVICE)
    return protocols


def _read_protocol(source: Source, path: str, variable: str, names: Names) -> ProtocolTable:
    protocol = ProtocolTable(partial(_key, "test"))
    for row in matlab.iterate(source, path, variable, ADVICE):
        with matlab.naming(source, path):
            (query,) = row["Query"].structs()
            image, idname = _image(query["imname"]), query["idname"].text()
            numbers = _numbers(query["idlocate"])
            gallery, places = _gallery(row["Gallery"])
        for name, place in ((image, numbers), *places):
            _add(names, name, place, idname)
        positives = [(name, _box(place)) for name, place in places]
        protocol.add(idname, image, _box(numbers), f"person:{idname}", gallery, positives)
    return protocol


def _gallery(value: Matrix) -> tuple[list[str], list[tuple[str, Numbers]]]:
    """The images to search, and where in some of them the person is: the others' idlocate is empty."""
    images: list[str] = []
    places: list[tuple[str, Numbers]] = []
    for entry in value.structs():
        image = _image(entry["imname"])
        images.append(image)
        if not entry["idlocate"].is_empty():
            places.append((image, _numbers(entry["idlocate"])))
    return images, places


def _foreign(protocols: dict[str, ProtocolTable], pool: Mapping[str, None]) -> list[FaultySample]:
    """Images that a protocol names and that are not in the pool: no search can have them."""
    named: set[str] = set().union(*(protocol.images for protocol in protocols.values()))
    reason = "named by a test protocol and not in pool.mat"
    return [
        FaultySample(_key("test", image), f"{FOLDER}/{image}", reason)
        for image in sorted(named - pool.keys())
    ]


def _key(split: str, image: str) -> str:
    return sample_key("cuhk_sysu", split, image)


def _list(
    images: Iterable[str], files: Mapping[str, SourceFile], labels: "_Labels", split: str
) -> tuple[list[SourceSample], list[FaultySample]]:
    samples: list[SourceSample] = []
    faulty: list[FaultySample] = []
    for image in images:
        key, origin = _key(split, image), f"{FOLDER}/{image}"
        if image not in files:
            faulty.append(FaultySample(key, origin))
        elif image not in labels.boxes:
            faulty.append(FaultySample(key, origin, "in pool.mat and not in Images.mat"))
        else:
            persons, extra = labels.persons(image)
            (locator, size) = files[image]
            samples.append(SourceSample(key, locator, origin, size, persons, extra=extra))
    return samples, faulty


@dataclass(frozen=True)
class _Labels:
    """What is known of the people in each image."""

    boxes: Mapping[str, list[_Entry]]
    names: Names
    """Of the benchmark's people, in this split."""
    others: Names
    """Of everybody."""

    def persons(self, image: str) -> tuple[tuple[Person, ...], dict[str, JsonValue]]:
        """The people in `image`, and what else was said about it."""
        entries, names = self.boxes[image], self.names.get(image, {})
        persons = tuple(
            self._person(image, entry) for entry in entries if has_area(_box(entry.numbers))
        )
        dropped: list[JsonValue] = [
            {"idlocate": list(entry.numbers), "ishard": int(entry.hard)}
            for entry in entries
            if not has_area(_box(entry.numbers))
        ]
        annotated = {entry.numbers for entry in entries}
        lost: list[JsonValue] = [
            {"idlocate": list(numbers), "idnames": list(found)}
            for numbers, found in names.items()
            if numbers not in annotated
        ]
        return persons, keep_dropped(dropped) | ({"names_without_box": lost} if lost else {})

    def _person(self, image: str, entry: _Entry) -> Person:
        names = self.names.get(image, {}).get(entry.numbers, [])
        known = names or self.others.get(image, {}).get(entry.numbers, [])
        extra: dict[str, JsonValue] = {"idlocate": [*entry.numbers]}
        if known and len(names) != 1:
            extra["idnames"] = [*known]
        return Person(
            box=_box(entry.numbers),
            identity=f"person:{names[0]}" if len(names) == 1 else None,
            tags=("hard",) if entry.hard else (),
            extra=extra,
        )
