"""Writes a CUHK03 look-alike: `cuhk03_release/cuhk-03.mat` (HDF5) and two protocol configs (MATLAB 5),
or the same pictures in the folders of CUHK03-NP.

The look: five pairs of cameras over brick walkways and corridors; small, soft, purplish pictures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from sharding.miniature.crops import Camera, draw_crop, make_camera, passers_by
from sharding.miniature.encode import png, put
from sharding.miniature.scenes import Look
from sharding.miniature.world import (
    MiniatureConfig,
    TruthImage,
    TruthPerson,
    draw_appearance,
    generator,
)

LOOK = Look(
    gains=(1.04, 0.93, 1.1), saturation=0.72, contrast=1.08, exposure=0.88, blur=0.95, noise=2.8
)
VARIANTS = ("labeled", "detected")
NP_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PAIR_SHARES = (0.44, 0.26, 0.12, 0.1, 0.08)
COLUMNS = 10
MARGIN = 12
"""Pixels drawn around the labelled crop, for the detector's looser one."""
MAT5_HEADER = "MATLAB 5.0 MAT-file, written by the miniature of CUHK03"
MAT73_HEADER = "MATLAB 7.3 MAT-file, written by the miniature of CUHK03 HDF5 schema 1.00 ."


@dataclass(frozen=True)
class _Cell:
    """One picture in one variant: its place in the .mat file and its label in the configs."""

    pair: int
    row: int
    column: int
    label: int
    image: NDArray[np.uint8]

    @property
    def view(self) -> int:
        return 1 if self.column <= 5 else 2

    @property
    def name(self) -> str:
        return f"{self.pair}_{self.row:03d}_{self.view}_{self.column:02d}.png"


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    folder = root / "cuhk03"
    rows = _rows_of_pairs(config.cuhk03_train_identities + config.cuhk03_test_identities)
    cells = _draw_cells(config, rows)
    parts = _split(config, sum(rows))
    if not config.cuhk03_folders:
        (folder / "cuhk03_release").mkdir(parents=True, exist_ok=True)
        _write_pictures(folder / "cuhk03_release" / "cuhk-03.mat", config, rows, cells)
    truth = []
    for variant in VARIANTS:
        part_of = _assign(cells[variant], parts[variant])
        if config.cuhk03_folders:
            names = _write_folders(folder / "cuhk03-np" / variant, cells[variant], part_of)
        else:
            names = [cell.name for cell in cells[variant]]
            config_name = f"cuhk03_new_protocol_config_{variant}.mat"
            _write_protocol(folder / config_name, cells[variant], part_of)
        for cell, part, name in zip(cells[variant], part_of, names, strict=True):
            height, width = cell.image.shape[:2]
            box = (0.0, 0.0, float(width), float(height))
            person = TruthPerson(box, str(cell.label), camera=str(cell.view))
            truth.append(TruthImage("cuhk03", f"{variant}_{part}", name, width, height, (person,)))
    return truth


def _write_folders(folder: Path, cells: list[_Cell], parts: list[str]) -> list[str]:
    """As CUHK03-NP; returns the files' names, which count the pictures of each person."""
    names = []
    counts: dict[int, int] = {}
    for cell, part in zip(cells, parts, strict=True):
        counts[cell.label] = counts.get(cell.label, 0) + 1
        names.append(f"{cell.label:04d}_c{cell.view}_{counts[cell.label]}.png")
        put(folder / NP_FOLDERS[part] / names[-1], png(cell.image))
    return names


def _rows_of_pairs(identities: int) -> list[int]:
    """How many people each pair of cameras saw; the release's are 843, 440, 77, 58 and 49."""
    rows = [max(int(identities * share), 1) for share in PAIR_SHARES[1:]]
    return [max(identities - sum(rows), 1), *rows]


def _draw_cells(config: MiniatureConfig, rows: list[int]) -> dict[str, list[_Cell]]:
    """All pictures of both variants, in the order of pair, row and column."""
    cells: dict[str, list[_Cell]] = {variant: [] for variant in VARIANTS}
    label = 0
    for pair, count in enumerate(rows, start=1):
        cameras = [
            make_camera(config.seed, place, LOOK, 0.34 * config.difficulty, "cuhk03", pair, view)
            for view, place in enumerate(("walkway", "hall" if pair % 2 else "walkway"), start=1)
        ]
        for row in range(1, count + 1):
            label += 1
            for column in _columns(config, label):
                camera = cameras[0 if column <= 5 else 1]
                for variant, image in _draw_pictures(config, camera, label, column).items():
                    cells[variant].append(_Cell(pair, row, column, label, image))
    # A few pictures exist in one variant alone, as in the release.
    del cells["labeled"][3::97]
    del cells["detected"][5::89]
    return cells


def _columns(config: MiniatureConfig, label: int) -> list[int]:
    """Columns in use, with gaps: 1-5 hold the first view, 6-10 the second. Label 2 has one view."""
    rng = generator(config.seed, "cuhk03", label, "columns")
    each = config.crops_per_identity // 2
    first = sorted((rng.permutation(5)[:each] + 1).tolist())
    second = sorted((rng.permutation(5)[:each] + 6).tolist())
    return first if label == 2 else first + second


def _draw_pictures(
    config: MiniatureConfig, camera: Camera, label: int, column: int
) -> dict[str, NDArray[np.uint8]]:
    """The same moment, cut by hand and by a detector."""
    rng = generator(config.seed, "cuhk03", label, column)
    person = draw_appearance(config.seed, "cuhk03", label)
    height = round(float(rng.uniform(124, 160)) * config.scale)
    width = round(height * float(rng.uniform(0.37, 0.43)))
    size = (width + 2 * MARGIN, height + 2 * MARGIN)
    stranger = passers_by(rng, config.seed, "cuhk03", 0.4 * config.difficulty)
    wide = draw_crop(
        rng, camera, person, size, config.difficulty, stranger, fill=0.92 * height / size[1]
    )
    dx, dy = (int(v) for v in rng.integers(-8, 9, 2))
    labeled = wide[MARGIN : MARGIN + height, MARGIN : MARGIN + width]
    detected = wide[MARGIN + dy : MARGIN + dy + height, MARGIN + dx : MARGIN + dx + width]
    resized = cv2.resize(
        detected, (width + int(rng.integers(-4, 8)), height + int(rng.integers(-4, 12)))
    )
    return {"labeled": labeled, "detected": np.asarray(resized, np.uint8)}


def _split(config: MiniatureConfig, identities: int) -> dict[str, set[int]]:
    """Training labels of each variant; the detected ones have one person swapped, as in the release."""
    order = (generator(config.seed, "cuhk03", "split").permutation(identities) + 1).tolist()
    train = config.cuhk03_train_identities
    labeled = set(order[:train])
    return {"labeled": labeled, "detected": labeled - {order[0]} | {order[-1]}}


def _assign(cells: list[_Cell], train: set[int]) -> list[str]:
    """`train`, `query` (the first picture of each view) or `gallery`, cell by cell."""
    parts = []
    queried: set[tuple[int, int]] = set()
    for cell in cells:
        spot = (cell.label, cell.view)
        if cell.label in train:
            parts.append("train")
        elif spot in queried:
            parts.append("gallery")
        else:
            queried.add(spot)
            parts.append("query")
    return parts


def _write_protocol(path: Path, cells: list[_Cell], parts: list[str]) -> None:
    names = np.empty((len(cells), 1), object)
    names[:, 0] = [np.array([cell.name]) for cell in cells]
    variables: dict[str, Any] = {
        "filelist": names,
        "labels": np.array([[cell.label] for cell in cells], np.uint16),
        "camId": np.array([[cell.view] for cell in cells], np.uint8),
    }
    for part in ("train", "query", "gallery"):
        indices = [[i] for i, mine in enumerate(parts, start=1) if mine == part]
        variables[f"{part}_idx"] = np.array(indices, np.uint16).reshape(-1, 1)
    savemat(path, variables, do_compression=True)
    _overwrite(path, MAT5_HEADER.ljust(116).encode())  # savemat writes the time of day there


def _write_pictures(
    path: Path, config: MiniatureConfig, rows: list[int], cells: dict[str, list[_Cell]]
) -> None:
    """HDF5 as MATLAB writes it: a header of 512 bytes, cells as references, all axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        store = _References(file)
        for variant in VARIANTS:
            pairs = []
            for pair, count in enumerate(rows, start=1):
                grid: list[list[Any]] = [[None] * count for _ in range(COLUMNS)]
                for cell in cells[variant]:
                    if cell.pair == pair:
                        grid[cell.column - 1][cell.row - 1] = store.image(cell.image)
                pairs.append(
                    store.cell([[ref or store.empty() for ref in column] for column in grid])
                )
            _set_cell(file, variant, [pairs])
        _set_cell(file, "testsets", [_test_sets(config, rows, store)])
    _overwrite(path, MAT73_HEADER.ljust(116).encode() + bytes(8) + b"\x00\x02IM")


def _test_sets(
    config: MiniatureConfig, rows: list[int], store: "_References"
) -> list[h5py.Reference]:
    """The old protocol's twenty draws of test people, as 1-based (pair, row)."""
    everyone = [
        (pair, row) for pair, count in enumerate(rows, start=1) for row in range(1, count + 1)
    ]
    sets = []
    for number in range(20):
        rng = generator(config.seed, "cuhk03", "testset", number)
        drawn = rng.permutation(len(everyone))[: config.cuhk03_test_identities]
        sets.append(store.doubles(np.array([everyone[i] for i in drawn], np.float64)))
    return sets


class _References:
    """The group `#refs#`, in which MATLAB keeps what cells refer to."""

    def __init__(self, file: h5py.File) -> None:
        self.group = file.create_group("#refs#")

    def _add(self, data: NDArray[Any], matlab_class: bytes, **options: Any) -> h5py.Dataset:
        item = self.group.create_dataset(
            f"r{len(self.group):06d}", data=data, track_times=False, **options
        )
        item.attrs["MATLAB_class"] = np.bytes_(matlab_class)
        return item

    def image(self, image: NDArray[np.uint8]) -> h5py.Reference:
        pixels = np.ascontiguousarray(image.transpose(2, 1, 0))
        return self._add(
            pixels, b"uint8", compression="gzip", compression_opts=3, chunks=pixels.shape
        ).ref

    def empty(self) -> h5py.Reference:
        """An unused cell holds the dimensions of the empty matrix, not a matrix of no size."""
        item = self._add(np.zeros(2, np.uint64), b"double")
        item.attrs["MATLAB_empty"] = np.uint8(1)
        return item.ref

    def doubles(self, matrix: NDArray[np.float64]) -> h5py.Reference:
        return self._add(np.ascontiguousarray(matrix.T), b"double").ref

    def cell(self, references: list[list[h5py.Reference]]) -> h5py.Reference:
        return self._add(np.array(references, h5py.ref_dtype), b"cell").ref


def _set_cell(file: h5py.File, name: str, references: list[list[h5py.Reference]]) -> None:
    data = np.array(references, h5py.ref_dtype)
    file.create_dataset(name, data=data, track_times=False).attrs["MATLAB_class"] = np.bytes_(
        b"cell"
    )


def _overwrite(path: Path, header: bytes) -> None:
    with path.open("r+b") as file:
        file.write(header)
