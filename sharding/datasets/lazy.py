"""Samples by the million: arrays instead of an object each, and a record only when it is asked for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sharding.datasets.base import SourceSample

CHUNK = 1 << 16

Sizes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LazySamples(Sequence[SourceSample]):
    names: pa.LargeBinaryArray
    sizes: Sizes
    """Bytes of each."""
    make: Callable[[int, bytes, int], SourceSample]
    """Its number, name and size -> the record."""

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> SourceSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[SourceSample]: ...
    def __getitem__(self, index: int | slice) -> SourceSample | list[SourceSample]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        return self.make(number, self.names[number].as_py(), int(self.sizes[number]))

    def __iter__(self) -> Iterator[SourceSample]:
        for number, name in enumerate(each(self.names)):
            yield self.make(number, name, int(self.sizes[number]))


def gather(items: Iterable[tuple[bytes, int]]) -> tuple[pa.LargeBinaryArray, Sizes]:
    """Names and sizes as arrays, without ever holding all of them as objects."""
    names, sizes = pieces([]), [np.empty(0, np.int64)]
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        names += pieces([name for name, _ in chunk])
        sizes.append(np.array([size for _, size in chunk], np.int64))
    return pa.concat_arrays(names), np.concatenate(sizes)


def pieces(names: Sequence[str | bytes]) -> list[pa.LargeBinaryArray]:
    """In order, strings as UTF-8; at least one array. Raises TypeError or pa.ArrowInvalid on others."""
    starts = range(0, len(names), CHUNK) or (0,)
    return [pa.array(names[start : start + CHUNK], pa.large_binary()) for start in starts]


def each(names: pa.LargeBinaryArray) -> Iterator[bytes]:
    for start in range(0, len(names), CHUNK):
        yield from names.slice(start, CHUNK).to_pylist()
