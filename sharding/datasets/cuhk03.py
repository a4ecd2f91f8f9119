"""CUHK03 (Li et al., CVPR 2014) under the 767/700 protocol of Zhong et al. (CVPR 2017)."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.annotation import Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import cuhk03_np, matlab, text
from sharding.datasets.base import (
    MISSING,
    WHOLE_CROP,
    FaultySample,
    Listing,
    Published,
    SourceSample,
    count_identities,
)
from sharding.datasets.cuhk03_cells import COLUMNS, Shapes, read_picture
from sharding.source import Source, find_root, require

IMAGES = "cuhk-03.mat"
EXPECTED = (
    f"cuhk03_release/{IMAGES} from cuhk03_release.zip, and beside it or beside cuhk03_release/ the files "
    "cuhk03_new_protocol_config_labeled.mat and cuhk03_new_protocol_config_detected.mat; or the folders "
    "labeled/ and detected/ of CUHK03-NP"
)
VARIANTS = {"labelled": "labeled", "detected": "detected"}
"""How a split spells the variant -> how the release does."""
MOST_LABEL = 1_000_000
PARTITIONS = ("train", "query", "gallery")
NAME = re.compile(r"(\d{1,6})_(\d{1,6})_([12])_(\d{1,6})\.png")
"""pair, row, view, column; all from 1."""
CELL = re.compile(r"(?P<file>.+):(?P<cell>(?:labeled|detected)/\d+/\d+/\d+)", re.DOTALL)
"""Locator of a picture in the .mat file."""
SPLITS: Mapping[str, tuple[Published, ...]] = {
    "labelled_train": (Published("images", 7_368, "V"), Published("identities", 767, "V")),
    "labelled_query": (Published("images", 1_400, "V"), Published("identities", 700, "V")),
    "labelled_gallery": (Published("images", 5_328, "V"),),
    "detected_train": (Published("images", 7_365, "V"), Published("identities", 767, "V")),
    "detected_query": (Published("images", 1_400, "V"), Published("identities", 700, "V")),
    "detected_gallery": (Published("images", 5_332, "V"),),
}


class _Entry(NamedTuple):
    name: str
    pair: int
    row: int
    view: int
    column: int
    identity: int

    def cell(self, variant: str) -> str:
        return f"{variant}/{self.pair}/{self.row}/{self.column}"


class Cuhk03:
    """Labelled and detected crops share file names and people, but not their train/test division.

    Train on one variant only: the two train sets differ by one person, who is in the other's test set.
    The release is a .mat file with the protocol beside it, or, where there is none, CUHK03-NP's folders.
    """

    name = "cuhk03"
    task: Task = "reid"
    licence = (
        "CUHK03: academic research only, not redistributable, given by the authors on request."
    )
    homepage = "https://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        for root in ("", "cuhk03_release/"):
            if images := source.find(f"{root}{IMAGES}"):
                return _list_cells(source, root, images.locator, split)
        root = find_root(source, cuhk03_np.ROOTS, VARIANTS.values(), EXPECTED)
        return cuhk03_np.list_folder(source, f"{root}{VARIANTS[split.split('_')[0]]}", split)

    def read(self, source: Source, locator: str) -> bytes:
        cell = CELL.fullmatch(locator)
        return read_picture(source, *cell.group("file", "cell")) if cell else source.read(locator)


def _list_cells(source: Source, root: str, images: str, split: str) -> Listing:
    spelled, partition = split.split("_")
    variant = VARIANTS[spelled]
    shapes = Shapes(source, images, variant)
    samples: list[SourceSample] = []
    faulty: list[FaultySample] = []
    entries = _read_config(source, _find_config(source, root, variant), partition)
    for entry in entries:
        reason = MISSING
        try:
            shape = shapes.of(entry.pair, entry.row, entry.column)
        except ValueError as error:
            shape, reason = None, f"unreadable: {error}"
        if shape is None:
            origin = f"{IMAGES}:{entry.cell(variant)}"
            faulty.append(FaultySample(_key(split, entry), origin, reason))
        else:
            samples.append(_sample(entry, shape, split, variant, images))
    found = {"images": len(samples), "identities": count_identities(samples)}
    return Listing(samples, len(entries), faulty=tuple(faulty), found=found)


def _find_config(source: Source, root: str, variant: str) -> str:
    name = f"cuhk03_new_protocol_config_{variant}.mat"
    for path in (f"{root}{name}", name):
        if source.find(path):
            return path
    raise UserError(
        f"{name} is not in {source.at(root)}{f' nor in {source.url}' if root else ''}. It holds the 767/700 "
        "protocol and comes apart from the images: put it beside them, or name the folder that holds both."
    )


def _read_config(source: Source, path: str, partition: str) -> list[_Entry]:
    """The images of `partition`. Raises UserError unless the three partitions are sound."""
    rows, positions = _load_config(source, path)
    path = source.at(path)
    together = np.concatenate(positions)
    if together.size and not 0 <= together.min() <= together.max() < len(rows):
        raise UserError(
            f"{path}: its indices reach outside of 1 to {len(rows)}, the files that it lists."
        )
    if len(np.unique(together)) != len(together):
        raise UserError(
            f"{path}: an image is in two of {', '.join(PARTITIONS)}, or in one of them twice."
        )
    chosen = positions[PARTITIONS.index(partition)]
    return [_entry(rows[position], path) for position in chosen]


def _load_config(
    source: Source, path: str
) -> tuple[list[tuple[str, int, int]], list[NDArray[np.int64]]]:
    """Rows of name, label and view, and the 0-based rows of each partition."""
    names = ("filelist", "labels", "camId", *(f"{name}_idx" for name in PARTITIONS))
    try:
        config = matlab.parse(source.read(require(source, path, EXPECTED).locator))
        filelist = [cell.text() for cell in config["filelist"].cells()]
        labels, views, *indices = (_integers(config[name]) for name in names[1:])
        rows = list(zip(filelist, labels.tolist(), views.tolist(), strict=True))
        return rows, [index - 1 for index in indices]  # they count from 1
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{source.at(path)}: expected the MATLAB 5 file with {', '.join(names)}; found: {error}."
        ) from error


def _integers(matrix: matlab.Matrix) -> NDArray[np.int64]:
    """Stored as unsigned ones, which would not do for arithmetic. Raises ValueError."""
    numbers = np.ravel(matrix.numbers())
    if numbers.size and (np.abs(numbers).max() > MOST_LABEL or (numbers % 1).any()):
        raise ValueError("numbers that are no labels")
    return numbers.astype(np.int64)


def _entry(row: tuple[str, int, int], path: str) -> _Entry:
    name = row[0]
    match = NAME.fullmatch(name)
    if not match:
        raise UserError(
            f"{path}: {name!r} is not named as CUHK03 names its images (1_001_1_01.png)."
        )
    pair, person, view, column = (int(number) for number in match.groups())
    if view != (1 if column <= COLUMNS // 2 else 2) or view != row[2]:
        raise UserError(f"{path}: {name} contradicts itself or its camId {row[2]} about the view.")
    return _Entry(name, pair, person, view, column, row[1])


def _key(split: str, entry: _Entry) -> str:
    return sample_key("cuhk03", split, entry.name)


def _sample(
    entry: _Entry, shape: tuple[int, ...], split: str, variant: str, file: str
) -> SourceSample:
    cell = entry.cell(variant)
    person = Person(
        box=WHOLE_CROP,
        identity=f"person:{entry.identity:04d}",
        camera=f"{entry.pair}:{entry.view}",
        extra={"pair": entry.pair, "view": entry.view},
    )
    return SourceSample(
        key=_key(split, entry),
        locator=f"{file}:{cell}",
        origin=f"{IMAGES}:{cell}",
        size_bytes=int(np.prod(shape)),
        persons=(person,),
        expected_size=(shape[1], shape[2]) if len(shape) == 3 else None,
        extra={"name": entry.name},
    )
