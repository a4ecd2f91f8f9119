"""MATLAB 5 files as a release has them: cells, struct arrays and integers as small as they fit."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from sharding.miniature.encode import put

HEADER = b"MATLAB 5.0 MAT-file, written by the miniature of a release".ljust(116)


def write_mat(path: Path, name: str, value: Any) -> None:
    """A file with one variable, the same bytes whenever it is written."""
    buffer = io.BytesIO()
    savemat(buffer, {name: value}, do_compression=True)
    put(path, HEADER + buffer.getvalue()[len(HEADER) :])  # savemat writes the time of day there


def cell(values: Sequence[Any]) -> NDArray[np.object_]:
    """A cell array of one column."""
    cells = np.empty((len(values), 1), object)
    for row, value in enumerate(values):
        cells[row, 0] = value
    return cells


def structs(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.void]:
    """A struct array of one row. Raises IndexError if it would be empty."""
    array = np.empty((1, len(rows)), [(name, object) for name in rows[0]])
    for column, row in enumerate(rows):
        array[0, column] = tuple(row.values())
    return array


def integers(values: Sequence[int]) -> NDArray[np.integer[Any]]:
    """One row of the smallest unsigned type, as MATLAB code that wants small files makes it."""
    kind: type[np.unsignedinteger[Any]] = np.uint8 if max(values) < 256 else np.uint16
    return np.array([values], np.int64).astype(kind)
