"""MATLAB 5 files of a release, matrix by matrix: no more of a file is opened than is asked for.

SciPy's reader is not used here: some damaged files crash the process with it, and for a protocol of
2,900 galleries of 4,000 images it needs 13 GB.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from struct import Struct
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from sharding.ranges import Inflated, RangeFile, Ranges, Window
from sharding.source import Source, require

HEADER_BYTES = 128
VERSION = b"\x00\x01IM"
"""The last bytes of the header: version 5, little end first."""
INTEGERS, FLAGS, MATRIX, COMPRESSED = 5, 6, 14, 15
"""Types of data elements, as are the keys of NUMBERS and LETTERS."""
NUMBERS = {
    **{1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"},
    **{12: "<i8", 13: "<u8"},
}
LETTERS = {1: "latin1", 2: "latin1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
CELL, STRUCT, TEXT = 1, 2, 4
"""Classes of matrices, as are the keys of ARRAYS."""
ARRAYS = {
    **{6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2"},
    **{12: "i4", 13: "u4", 14: "i8", 15: "u8"},
}
COMPLEX = 0x800
TAG, START, SIDES = Struct("<II"), Struct("<IIIIII"), Struct("<ii")
START_BYTES = 1 << 12
"""More than a large struct array spends on its size, its name and the names of its fields."""
BUFFER = 1 << 20


class _Head(NamedTuple):
    kind: int
    shape: tuple[int, ...]
    is_complex: bool
    name: bytes
    content: int
    """Where it starts."""

    def describe(self) -> str:
        return f"a matrix of class {self.kind} and size {' x '.join(map(str, self.shape))}"


class Matrix(NamedTuple):
    """What it is, is found out when it is asked for its content. All methods raise ValueError."""

    data: bytes
    start: int
    end: int
    """`start` and `end` of what its tag announced; nothing of an empty matrix in some places."""

    def is_empty(self) -> bool:
        return self.start == self.end or 0 in self._head().shape

    def text(self) -> str:
        """Of one row."""
        head = self._head()
        coding, letters, _ = _item(self.data, head.content, self.end)
        if head.kind != TEXT or coding not in LETTERS or head.shape[:-1] != (1,):
            raise ValueError(f"expected a string, found {head.describe()}")
        return letters.decode(LETTERS[coding])

    def numbers(self) -> NDArray[Any]:
        """Finite and real ones, of the type that MATLAB holds them in: beware of sums in uint8."""
        if self.start == self.end:
            return np.empty((0, 0))
        head = self._head()
        stored, content, _ = _item(self.data, head.content, self.end)
        if head.kind not in ARRAYS or stored not in NUMBERS or head.is_complex:
            raise ValueError(f"expected real numbers, found {head.describe()}")
        array = np.frombuffer(content, NUMBERS[stored]).astype(ARRAYS[head.kind])
        if array.size != prod(head.shape) or not np.isfinite(array).all():
            raise ValueError(f"{head.describe()} lacks numbers, or some are not finite numbers")
        return array.reshape(head.shape, order="F")

    def cells(self) -> "Iterator[Matrix]":
        """Column by column."""
        if self.is_empty():
            return
        head = self._head()
        if head.kind != CELL:
            raise ValueError(f"expected a cell array, found {head.describe()}")
        yield from _matrices(self.data, head.content, self.end, prod(head.shape))

    def structs(self) -> "Iterator[dict[str, Matrix]]":
        """Of a struct array, or of all in a cell array of them."""
        if self.is_empty():
            return
        if self._head().kind == CELL:
            for cell in self.cells():
                yield from cell._own_structs()
        else:
            yield from self._own_structs()

    def _own_structs(self) -> "Iterator[dict[str, Matrix]]":
        head = self._head()
        fields, start = _fields(self.data, head, self.end)
        matrices = _matrices(self.data, start, self.end, prod(head.shape) * len(fields))
        for first in matrices:
            yield dict(zip(fields, (first, *(next(matrices) for _ in fields[1:]))))

    def _head(self) -> _Head:
        return _head(self.data, self.start, self.end)


def parse(data: bytes) -> dict[str, Matrix]:
    """The variables of a file. Raises ValueError unless it is a sound MATLAB 5 file."""
    bodies = {name: body.read(0, body.size) for name, body in _variables(_Held(data))}
    return {name: Matrix(body, 0, len(body)) for name, body in bodies.items()}


def load(source: Source, path: str, name: str, advice: str) -> Matrix:
    """The variable `name` of the file at `path`. Raises UserError naming the file."""
    file = require(source, path, advice)
    with naming(source, path):
        variables = parse(source.read(file.locator))
        _check_has(name, variables)
        return variables[name]


def iterate(source: Source, path: str, name: str, advice: str) -> Iterator[dict[str, Matrix]]:
    """The structs of the struct array `name`, one by one: a file may inflate to gigabytes.

    Raises UserError naming the file, also after the last.
    """
    file = require(source, path, advice)
    with naming(source, path):
        names = []
        for found, body in _variables(source.ranges(file.locator)):
            names.append(found)
            if found == name:
                yield from _stream(body)
        _check_has(name, names)


@contextmanager
def naming(source: Source, path: str) -> Iterator[None]:
    """Turns a ValueError over a file's content, or a KeyError over a field, into a UserError naming it."""
    try:
        yield
    except (ValueError, KeyError) as error:
        what = f"structs without {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{source.at(path)} is not the release's file: {what}. Copy it again from the release."
        ) from None


def _check_has(name: str, found: Iterable[str]) -> None:
    if name not in found:
        raise ValueError(f"no variable {name!r} in it, but {', '.join(found) or 'nothing'}")


class _Held(NamedTuple):
    """Bytes as `Ranges`."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, end: int) -> bytes:
        return self.data[start:end]


def _variables(data: Ranges) -> Iterator[tuple[str, Ranges]]:
    """Name and matrix of each variable. What was packed is inflated as it is read, and checked after."""
    if data.read(0, HEADER_BYTES)[-len(VERSION) :] != VERSION:
        raise ValueError("no MATLAB 5 file")
    start = HEADER_BYTES
    while start < data.size:
        kind, size = _tag(data.read(start, start + TAG.size), 0, TAG.size)
        whole: Ranges = Window(data, start, TAG.size + size)
        start += TAG.size + size
        if start > data.size:
            raise ValueError("it ends early")
        if kind == COMPRESSED:
            whole = Inflated(Window(whole, TAG.size, size), wbits=15)
            kind, size = _tag(whole.read(0, TAG.size), 0, TAG.size)
        if kind != MATRIX:
            raise ValueError(f"a data element of type {kind} where a variable should be")
        body = Window(whole, TAG.size, size)
        first = body.read(0, START_BYTES)
        yield _head(first, 0, len(first)).name.decode("latin1"), body
        if isinstance(whole, Inflated) and whole.read(TAG.size + size, TAG.size + size + 1):
            raise ValueError("a packed variable is longer than it says")


def _stream(body: Ranges) -> Iterator[dict[str, Matrix]]:
    first = body.read(0, START_BYTES)
    head = _head(first, 0, len(first))
    fields, start = _fields(first, head, len(first))
    stream: IO[bytes] = io.BufferedReader(RangeFile(body), BUFFER)
    stream.seek(start)
    for _ in range(prod(head.shape)):
        yield {field: _read_matrix(stream) for field in fields}


def _read_matrix(stream: IO[bytes]) -> Matrix:
    kind, size = _tag(stream.read(TAG.size), 0, TAG.size)
    data = stream.read(size)
    if kind != MATRIX or len(data) < size:
        raise ValueError("it ends early, or has no matrix where one should be")
    return Matrix(data, 0, size)


def _head(data: bytes, start: int, end: int) -> _Head:
    content = start + START.size
    if content > end:
        raise ValueError("a matrix ends early")
    kind, size, flags, _, shape_kind, shape_size = START.unpack_from(data, start)
    stop = content + shape_size + -shape_size % 8
    if (kind, size, shape_kind) != (FLAGS, 8, INTEGERS) or shape_size < 8 or stop > end:
        raise ValueError("a damaged matrix")
    shape = SIDES.unpack_from(data, content)
    if shape_size != SIDES.size:
        shape = tuple(np.frombuffer(data[content : content + shape_size], "<i4").tolist())
    if min(shape) < 0:
        raise ValueError(f"a matrix of size {shape}")
    _, name, content = _item(data, stop, end)
    return _Head(flags & 0xFF, shape, bool(flags & COMPLEX), name, content)


def _fields(data: bytes, head: _Head, end: int) -> tuple[list[str], int]:
    """Names of a struct array's fields, and where their values start."""
    if head.kind != STRUCT:
        raise ValueError(f"expected structs, found {head.describe()}")
    _, width, start = _item(data, head.content, end)
    _, names, start = _item(data, start, end)
    step = int.from_bytes(width, "little")
    if not 0 < step <= len(names):
        raise ValueError("structs without fields")
    pieces = (names[at : at + step] for at in range(0, len(names), step))
    return [piece.split(b"\0")[0].decode("latin1") for piece in pieces], start


def _matrices(data: bytes, start: int, end: int, count: int) -> Iterator[Matrix]:
    for _ in range(count):
        kind, size = _tag(data, start, end)
        start += TAG.size + size
        if kind != MATRIX or start > end:
            raise ValueError("a matrix ends early, or has no other one in it where one should be")
        yield Matrix(data, start - size, start)


def _item(data: bytes, start: int, end: int) -> tuple[int, bytes, int]:
    """Type and content of a data element, which may be short or padded to eight bytes, and its end."""
    kind, size = _tag(data, start, end)
    start += TAG.size
    if kind >> 16:
        return kind & 0xFFFF, data[start - 4 : min(start - 4 + (kind >> 16), start)], start
    if start + size > end:
        raise ValueError("a matrix ends early")
    return kind, data[start : start + size], start + size + -size % 8


def _tag(data: bytes, start: int, end: int) -> tuple[int, int]:
    if start + TAG.size > min(end, len(data)):
        raise ValueError("a matrix ends early")
    kind, size = TAG.unpack_from(data, start)
    return kind, size
