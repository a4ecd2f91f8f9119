"""PRW (Zheng et al., CVPR 2017): person search on a campus under six cameras."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import JsonValue

from pipeline.annotation import Box, Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import matlab, text
from sharding.datasets.base import FaultySample, Listing, Published, SourceSample, read_samples
from sharding.datasets.boxes import count_people, has_area, keep_dropped
from sharding.datasets.protocol import ProtocolTable
from sharding.source import Source, SourceFile, find_root

EXPECTED = (
    "frames/ and annotations/ beside frame_train.mat, frame_test.mat and query_info.txt, "
    "from PRW-v16.04.20.zip"
)
VARIABLES = ("box_new", "anno_file", "anno_previous")
"""Names of the one matrix in a frame's annotation; the first that is there counts."""
NAME = re.compile(r"c(\d+)s(\d+)_(\d+)")
"""camera, sequence, frame number."""
QUERIES = "query_info.txt"
SPLITS: Mapping[str, tuple[Published, ...]] = {
    "train": (
        Published("images", 5_704, "V"),
        Published("persons", 18_048, "V"),
        Published("labelled persons", 14_907, "V"),
        Published("identities", 483, "V"),
    ),
    "test": (
        Published("images", 6_112, "V"),
        Published("persons", 25_062, "V"),
        Published("labelled persons", 19_127, "V"),
        Published("identities", 544, "V"),
        Published("queries", 2_057, "V"),
    ),
}


class _Query(NamedTuple):
    person: int
    box: Box
    frame: str


class Prw:
    """A row of an annotation is id, x, y, width, height, in floats; id -2 is a person whom nobody named.

    Both splits number people alike, and a fifth of the test split's also occur in training. An id may
    be in a frame twice. The papers' 5,134 training frames are without 570 for validation, which
    frame_train.mat and everybody's training include.
    """

    name = "prw"
    task: Task = "search"
    licence = "PRW: academic research only, not redistributable."
    homepage = "https://github.com/liangzheng06/PRW-baseline"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        root = find_root(source, ("", "PRW-v16.04.20", "PRW"), ("frames", "annotations"), EXPECTED)
        frames = _read_frames(source, root, split)
        images = _files(source, f"{root}frames", ".jpg")
        annotations = _files(source, f"{root}annotations", ".jpg.mat")
        samples, faulty = read_samples(
            source,
            lambda frame: _sample(source, frame, split, images.get(frame), annotations.get(frame)),
            frames,
        )
        found = {"images": len(samples), **count_people(samples)}
        protocols: dict[str, pa.Table] = {}
        if split == "test":
            queries = _read_queries(source, root)
            faulty += _foreign(queries, frames)
            protocols["PRW"] = _protocol(queries)
            found["queries"] = len(queries)
        total = len(samples) + len(faulty)
        return Listing(samples, total, faulty=tuple(faulty), found=found, protocols=protocols)

    def read(self, source: Source, locator: str) -> bytes:
        return source.read(locator)


def _read_frames(source: Source, root: str, split: str) -> list[str]:
    """Names without ending of the split's frames. Raises UserError."""
    path = f"{root}frame_{split}.mat"
    cells = matlab.load(source, path, f"img_index_{split}", f"Expected {EXPECTED}.")
    with matlab.naming(source, path):
        names = [cell.text().removesuffix(".jpg") for cell in cells.cells()]
        for name in names:
            _check_name(name)
    return list(dict.fromkeys(names))


def _check_name(frame: str) -> None:
    if not NAME.fullmatch(frame):
        raise ValueError(f"{frame!r} is not named as PRW names its frames (c1s1_000151)")


def _files(source: Source, folder: str, suffix: str) -> dict[str, SourceFile]:
    """By frame. Raises UserError if there is none."""
    files = {
        path.removeprefix(f"{folder}/").removesuffix(suffix): file
        for path, file in source.files(folder, suffix).items()
    }
    if not files:
        raise UserError(
            f"{source.at(folder)} {source.describe(folder)}: no file *{suffix} there; expected {EXPECTED}."
        )
    return files


def _key(split: str, frame: str) -> str:
    return sample_key("prw", split, f"{frame}.jpg")


def _sample(
    source: Source,
    frame: str,
    split: str,
    image: SourceFile | None,
    annotation: SourceFile | None,
) -> SourceSample | FaultySample:
    key, origin, labels = _key(split, frame), f"frames/{frame}.jpg", f"annotations/{frame}.jpg.mat"
    if image is None:
        return FaultySample(key, origin)
    if annotation is None:
        return FaultySample(key, labels)
    camera = frame[1 : frame.index("s")]
    persons: list[Person] = []
    dropped: list[JsonValue] = []
    try:
        for row in _rows(source.read(annotation.locator)):
            if has_area(box := _box(row[1:])):
                persons.append(_person(row, box, camera))
            else:
                dropped.append([*row])
    except ValueError as error:
        return FaultySample(key, labels, f"damaged annotation file: {error}")
    extra = keep_dropped(dropped)
    return SourceSample(key, image.locator, origin, image.size, tuple(persons), extra=extra)


def _rows(data: bytes) -> list[list[float]]:
    """Rows of id, x, y, width, height. Raises ValueError."""
    variables = matlab.parse(data)
    matrix = next((variables[name] for name in VARIABLES if name in variables), None)
    if matrix is None:
        raise ValueError(f"holds none of {', '.join(VARIABLES)}")
    rows = matrix.numbers()
    if rows.size and (rows.ndim != 2 or rows.shape[1] != 5):
        raise ValueError(f"rows of 5 numbers expected, found {rows.shape}")
    return rows.reshape(-1, 5).astype(np.float64).tolist()


def _box(numbers: Sequence[float]) -> Box:
    """x, y, width, height as a half-open box, wherever it leaves the frame."""
    x, y, width, height = (float(number) for number in numbers)
    return (x, y, x + width, y + height)


def _person(row: list[float], box: Box, camera: str) -> Person:
    """Raises ValueError."""
    number = int(row[0])
    if number != row[0]:
        raise ValueError(f"a person's id is {row[0]}")
    identity = f"person:{number}" if number > 0 else None
    return Person(box=box, identity=identity, camera=camera, extra={"row": [*row]})


def _read_queries(source: Source, root: str) -> list[_Query]:
    """Raises UserError naming the line."""
    queries = []
    for number, line in text.text_lines(source, f"{root}{QUERIES}", f"Expected {EXPECTED}."):
        try:
            person, *numbers, frame = line.split()
            _check_name(frame := frame.removesuffix(".jpg"))
            box = _box([float(n) for n in numbers])
            if not all(map(math.isfinite, box)):
                raise ValueError("a number is not finite")
            queries.append(_Query(int(person), box, frame))
        except ValueError as error:
            raise UserError(
                f"{source.at(root + QUERIES)}, line {number}: expected a person's id, x, y, width, height "
                f"and a frame, found {line!r} ({error})."
            ) from None
    return queries


def _foreign(queries: list[_Query], frames: list[str]) -> list[FaultySample]:
    """Frames that are asked for and are not in the split: no search can have them."""
    listed = set(frames)
    names = dict.fromkeys(query.frame for query in queries)
    reason = f"named by {QUERIES} and not by frame_test.mat"
    return [
        FaultySample(_key("test", name), f"frames/{name}.jpg", reason)
        for name in names
        if name not in listed
    ]


def _protocol(queries: list[_Query]) -> pa.Table:
    """Each query is searched in all other frames, also in those of its own camera."""
    protocol = ProtocolTable(partial(_key, "test"))
    for query in queries:
        name = f"{query.person}_{query.frame}"
        protocol.add(name, query.frame, query.box, f"person:{query.person}")
    return protocol.table()
