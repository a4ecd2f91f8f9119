"""Reads from a source, several at a time where each waits for a store's answer."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sharding.source import Source

READERS = 16
"""Reads from a store at a time: each waits for the network most of the time."""

T = TypeVar("T")
R = TypeVar("R")


def map_reads(source: Source, read: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`read` of each, in the order of `items`. Raises what `read` does, at its item's turn."""
    if source.is_local:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(READERS) as readers:
        yield from readers.map(read, items)
