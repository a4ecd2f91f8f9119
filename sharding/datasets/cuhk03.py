"""CUHK03 (Li et al., CVPR 2014) under the 767/700 protocol of Zhong et al. (CVPR 2017)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from pipeline.annotation import Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import folder
from sharding.datasets.base import (
    WHOLE_CROP,
    FaultySample,
    Listing,
    Published,
    SourceSample,
    count_identities,
)
from sharding.datasets.handles import once_per_process

IMAGES = "cuhk-03.mat"
EXPECTED = (
    f"cuhk03_release/{IMAGES} from cuhk03_release.zip, and beside it or beside cuhk03_release/ the files "
    "cuhk03_new_protocol_config_labeled.mat and cuhk03_new_protocol_config_detected.mat"
)
VARIANTS = {"labelled": "labeled", "detected": "detected"}
"""How a split spells the variant -> how the release does."""
PARTITIONS = ("train", "query", "gallery")
COLUMNS = 10
"""Columns 1-5 of a camera pair's cell array hold the first view, 6-10 the second."""
NAME = re.compile(r"(\d+)_(\d+)_([12])_(\d+)\.png")
"""pair, row, view, column; all from 1."""
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
    """

    name = "cuhk03"
    task: Task = "reid"
    licence = (
        "CUHK03: academic research only, not redistributable, given by the authors on request."
    )
    homepage = "https://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html"
    splits = SPLITS

    def list_samples(self, source: Path, split: str) -> Listing:
        folder.check_split(self, split)
        spelled, partition = split.split("_")
        variant = VARIANTS[spelled]
        root = folder.find_root(source, ("", "cuhk03_release"), (IMAGES,), EXPECTED)
        release = (source / root).absolute()
        shapes = _Cells(_open(source / root / IMAGES), variant, source / root / IMAGES)
        samples: list[SourceSample] = []
        faulty: list[FaultySample] = []
        entries = _read_config(_find_config(release, variant), partition)
        for entry in entries:
            shape = shapes.shape(entry)
            if shape is None:
                origin = f"{IMAGES}:{entry.cell(variant)}"
                faulty.append(FaultySample(_key(split, entry), origin))
            else:
                samples.append(_sample(entry, shape, split, variant, f"{root}{IMAGES}"))
        found = {"images": len(samples), "identities": count_identities(samples)}
        return Listing(samples, len(entries), faulty=tuple(faulty), found=found)

    def read(self, source: Path, locator: str) -> bytes:
        """The crop as PNG, equal to the stored pixels."""
        path, _, cell = locator.partition(":")
        variant, pair, row, column = cell.split("/")
        file = _open(source / path)
        try:
            references = file[file[variant][()].flat[int(pair) - 1]]
            array = file[references[int(column) - 1, int(row) - 1]][()]
        except (KeyError, IndexError) as error:
            raise FileNotFoundError(f"no cell {cell} in {source / path}") from error
        if array.ndim != 3 or array.shape[0] != 3 or array.dtype != np.uint8:
            raise ValueError(
                f"{cell} is {array.dtype} {array.shape}, not a crop of 3 x width x height"
            )
        # MATLAB's axes arrive reversed, as channel x width x height; OpenCV wants blue first.
        upright = np.ascontiguousarray(array.transpose(2, 1, 0)[:, :, ::-1])
        done, png = cv2.imencode(".png", upright, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not done:
            raise ValueError(f"{cell} cannot be coded as PNG")
        return png.tobytes()


@once_per_process
def _open(path: Path) -> h5py.File:
    """Raises UserError unless `path` is a complete HDF5 file, which MATLAB 7.3 files are."""
    if not h5py.is_hdf5(path):
        head = path.open("rb").read(64).lstrip()
        found = "a web page" if head.startswith(b"<") else f"a file that starts with {head[:16]!r}"
        raise UserError(
            f"{path}: expected the MATLAB 7.3 (HDF5) file of the release, found {found}; the download "
            "failed or was a login page. Fetch it again."
        )
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: {error}; copy or unpack it again.") from error


class _Cells:
    """Shapes of one variant's images, straight from the file's headers."""

    def __init__(self, file: h5py.File, variant: str, path: Path) -> None:
        cells = file.get(variant)
        if not isinstance(cells, h5py.Dataset) or cells.dtype != h5py.ref_dtype:
            raise UserError(
                f"{path} has no cell array {variant!r} (it holds {', '.join(file) or 'nothing'}); "
                f"expected {EXPECTED}."
            )
        self.file = file
        self.pairs = [file[reference][()] for reference in cells[()].flat]
        for number, pair in enumerate(self.pairs, start=1):
            if pair.ndim != 2 or pair.shape[0] != COLUMNS or pair.dtype != h5py.ref_dtype:
                raise UserError(
                    f"{path}: camera pair {number} of {variant!r} is {pair.dtype} {pair.shape}, expected "
                    f"references of {COLUMNS} x people."
                )

    def shape(self, entry: _Entry) -> tuple[int, ...] | None:
        """Channel x width x height, or None of an empty or absent cell."""
        pair = self.pairs[entry.pair - 1] if 0 < entry.pair <= len(self.pairs) else np.empty((0, 0))
        if not (0 < entry.column <= pair.shape[0] and 0 < entry.row <= pair.shape[1]):
            return None
        reference = pair[entry.column - 1, entry.row - 1]
        cell = self.file[reference] if reference else None
        # An empty cell is stored as its dimensions, with an attribute: its size is not 0.
        if cell is None or "MATLAB_empty" in cell.attrs or cell.ndim < 3:
            return None
        return tuple(cell.shape)


def _find_config(release: Path, variant: str) -> Path:
    name = f"cuhk03_new_protocol_config_{variant}.mat"
    for place in (release, release.parent):
        if (place / name).is_file():
            return place / name
    raise UserError(
        f"{name} is neither in {release} nor in {release.parent}. It holds the 767/700 protocol and comes "
        "apart from the images; expected it beside them."
    )


def _read_config(path: Path, partition: str) -> list[_Entry]:
    """The images of `partition`. Raises UserError unless the three partitions are sound."""
    rows, positions = _load_config(path)
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


def _load_config(path: Path) -> tuple[list[tuple[Any, int, int]], list[NDArray[np.int64]]]:
    """Rows of name, label and view, and the 0-based rows of each partition."""
    names = ("filelist", "labels", "camId", *(f"{name}_idx" for name in PARTITIONS))
    try:
        config = loadmat(str(path), variable_names=names)
        filelist, labels, views, *indices = (np.ravel(config[name]) for name in names)
        # The indices count from 1, and the stored integers are unsigned.
        positions = [index.astype(np.int64) - 1 for index in indices]
        return list(zip(filelist, labels.tolist(), views.tolist(), strict=True)), positions
    except Exception as error:  # whatever SciPy's reader runs into when the file is another one
        raise UserError(
            f"{path}: expected the MATLAB 5 file with {', '.join(names)}; found: {error}."
        ) from error


def _entry(row: tuple[Any, int, int], path: Path) -> _Entry:
    name = str(np.ravel(row[0])[0]) if np.size(row[0]) else ""
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
