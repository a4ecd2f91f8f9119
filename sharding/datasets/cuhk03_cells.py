"""The pictures of CUHK03's cuhk-03.mat: raw arrays in cells of cells, in HDF5 as MATLAB 7.3 writes it."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import h5py
import numpy as np

from pipeline.errors import UserError
from sharding.datasets.handles import once_per_process
from sharding.source import Source

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
MATLAB_TEXT = 512
"""Bytes that MATLAB puts before the HDF5 signature."""
HDF5_ERRORS = ("Can't ", "Unable to ")
"""How the messages of HDF5's own OSErrors begin; what the source raises comes through as it is."""
COLUMNS = 10
"""Columns 1-5 of a camera pair's cell array hold the first view, 6-10 the second."""
MOST_PAIRS, MOST_PEOPLE, MOST_CROP_BYTES = 1000, 100_000, 1 << 28
"""More is taken for damage."""


@once_per_process
def open_pictures(source: Source, locator: str) -> h5py.File:
    """Raises UserError unless it is a complete HDF5 file, which MATLAB 7.3 files are."""
    try:
        file = source.open(locator)
        head = file.read(MATLAB_TEXT + len(HDF5_SIGNATURE)) or b""
    except ValueError as error:
        raise _damaged(source, error) from None
    if HDF5_SIGNATURE not in (head[: len(HDF5_SIGNATURE)], head[MATLAB_TEXT:]):
        page = head.lstrip().startswith(b"<")
        found = "a web page" if page else f"a file that starts with {head[:16]!r}"
        raise UserError(
            f"cuhk-03.mat in {source.url}: expected the MATLAB 7.3 (HDF5) file of the release, found "
            f"{found}; the download failed or was a login page. Fetch it again."
        )
    try:
        with _damage_as_value_error():
            return h5py.File(file, "r")
    except ValueError as error:
        raise _damaged(source, error) from None


class Shapes:
    """Shapes of one variant's pictures, straight from the file's headers."""

    def __init__(self, source: Source, locator: str, variant: str) -> None:
        """Raises UserError unless the file has the variant in the release's form."""
        self._file = open_pictures(source, locator)
        try:
            with _damage_as_value_error():
                self._pairs = list(_read_pairs(self._file, variant))
        except ValueError as error:
            raise _damaged(source, error) from None

    def of(self, pair: int, row: int, column: int) -> tuple[int, ...] | None:
        """Channel x width x height, or None of an empty or absent cell. Raises ValueError on damage."""
        cells = self._pairs[pair - 1] if 0 < pair <= len(self._pairs) else np.empty((0, 0))
        if not (0 < column <= cells.shape[0] and 0 < row <= cells.shape[1]):
            return None
        with _damage_as_value_error():
            reference = cells[column - 1, row - 1]
            cell = self._file[reference] if reference else None
            # An empty cell is stored as its dimensions, with an attribute: its size is not 0.
            if cell is None or "MATLAB_empty" in cell.attrs or cell.ndim < 3:
                return None
            return tuple(cell.shape)


def read_picture(source: Source, locator: str, cell: str) -> bytes:
    """The picture in `VARIANT/PAIR/ROW/COLUMN` as PNG, equal to the stored pixels.

    Raises ValueError if it is damaged, FileNotFoundError if there is none.
    """
    variant, pair, row, column = cell.split("/")
    file = open_pictures(source, locator)
    try:
        with _damage_as_value_error():
            references = file[file[variant][()].flat[int(pair) - 1]]
            stored = file[references[int(column) - 1, int(row) - 1]]
            if stored.ndim != 3 or stored.shape[0] != 3 or stored.dtype != np.uint8:
                raise ValueError(f"{stored.dtype} {stored.shape}, not 3 x width x height bytes")
            if stored.nbytes > MOST_CROP_BYTES:
                raise ValueError(f"{stored.nbytes:,} bytes, more than {MOST_CROP_BYTES:,}")
            array = stored[()]
    except (KeyError, IndexError) as error:
        raise FileNotFoundError(f"no cell {cell}") from error
    # MATLAB's axes arrive reversed, as channel x width x height; OpenCV wants blue first.
    upright = np.ascontiguousarray(array.transpose(2, 1, 0)[:, :, ::-1])
    done, png = cv2.imencode(".png", upright, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise ValueError("cannot be coded as PNG")
    return png.tobytes()


def _read_pairs(file: h5py.File, variant: str) -> Iterator[np.ndarray]:
    """Of each camera pair, references of columns x people. Raises ValueError."""
    cells = file.get(variant)
    if not _holds_references(cells, MOST_PAIRS):
        raise ValueError(
            f"no cell array {variant!r} (it holds {', '.join(file) or 'nothing'}), expected that of the "
            "release"
        )
    for number, reference in enumerate(cells[()].flat, start=1):
        pair = file[reference]
        if not _holds_references(pair, COLUMNS * MOST_PEOPLE) or pair.shape[:-1] != (COLUMNS,):
            raise ValueError(
                f"camera pair {number} of {variant!r} does not hold references of {COLUMNS} x people"
            )
        yield pair[()]


def _holds_references(item: object, most: int) -> bool:
    return isinstance(item, h5py.Dataset) and item.dtype == h5py.ref_dtype and 0 < item.size <= most


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    """What HDF5 runs into in a damaged file becomes ValueError; what the source raises stays."""
    try:
        yield
    except OSError as error:
        if not str(error).startswith(HDF5_ERRORS):
            raise
        raise ValueError(f"damaged ({error})") from None
    except (RuntimeError, TypeError, AttributeError, MemoryError) as error:
        raise ValueError(f"damaged ({error})") from None


def _damaged(source: Source, error: ValueError) -> UserError:
    return UserError(f"cuhk-03.mat in {source.url}: {error}; copy or unpack it again.")
