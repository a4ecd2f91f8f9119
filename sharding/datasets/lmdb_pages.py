"""LMDB files read in place: a read-only reader of the format over ranges of bytes.

The lmdb library maps a file of the local disk: it can read neither a store nor an archive's member, and
a file that ends early kills the process (SIGBUS). Here every number found in the file is checked before
it is followed, and damage raises ValueError. The format has no checksums: a changed key or value passes.

A file is a row of pages of one size. Pages 0 and 1 describe the tree, the newer of them holds. A page of
the tree is a header, offsets, and from its end the nodes: of a branch a key and the page with that and
later keys, of a leaf a key and its value, or the page at which a large value begins.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from sharding.archive import Ranges

PAGE = struct.Struct("<QHHHH")
"""Own number, unused, kind, end of the offsets, start of the nodes; last, of a large value, its pages."""
NODE = struct.Struct("<HHHH")
"""Low and high bits of the value's size or the child's number, flags (of a child: higher bits), key size."""
META = struct.Struct("<II 16x I 44x 4x HH 24x QQ 8x Q")
"""Magic, version, page size; of the main tree: flags, depth, entries, root; transaction."""
MAGIC, VERSION = 0xBEEFC0DE, 1
PAGE_SIZES = frozenset(1 << bits for bits in range(8, 16))
BRANCH, LEAF, LARGE_VALUE = 1, 2, 4
KINDS = 0x6F
"""All bits that say what a page is; the others come and go while LMDB writes."""
VALUE_ELSEWHERE = 1
NO_PAGE = (1 << 64) - 1
MOST_LEVELS = 32
PAGES_KEPT = 4096
BATCH = 256
"""Leaves asked for at a time, and the most pages of one read."""
GAP = 8
"""Pages between two leaves that are rather read along than left out."""


class Value(NamedTuple):
    key: bytes
    size: int
    elsewhere: bool
    start: int
    """In its leaf; elsewhere: in the file, of the page that it begins on."""


@dataclass(frozen=True, slots=True)
class _Page:
    number: int
    data: bytes
    nodes: tuple[int, ...]
    """Where in `data` each node begins, in order of keys."""

    def key(self, place: int) -> bytes:
        return self._node(place)[3]

    def child(self, place: int) -> int:
        low, high, higher, _, _ = self._node(place)
        return low | high << 16 | higher << 32

    def value(self, place: int) -> Value:
        low, high, flags, key, end = self._node(place)
        if flags not in (0, VALUE_ELSEWHERE):
            raise ValueError("named sub-databases and repeated keys are not supported")
        size = low | high << 16
        stored = 8 if flags else size
        if end + stored > len(self.data):
            raise ValueError(f"page {self.number} is damaged")
        start = int.from_bytes(self.data[end : end + 8], "little") if flags else end
        return Value(key, size, bool(flags), start)

    def _node(self, place: int) -> tuple[int, int, int, bytes, int]:
        """The three numbers, the key, and where it ends."""
        start = self.nodes[place]
        low, high, flags, key_size = NODE.unpack_from(self.data, start)
        start += NODE.size
        if start + key_size > len(self.data):
            raise ValueError(f"page {self.number} is damaged")
        return low, high, flags, self.data[start : start + key_size], start + key_size


class LmdbPages:
    """The main database of the LMDB file `data`, with `readers` reads at a time where pages are many.

    Raises ValueError if it is none, or of a kind that is not read here.
    """

    entries: int

    def __init__(self, data: Ranges, readers: int = 1) -> None:
        self._data, self._readers = data, readers
        meta = _newest_meta(data)
        self._page_size, self._depth, self._root = meta.page_size, meta.depth, meta.root
        self.entries = meta.entries
        if meta.flags:
            raise ValueError("repeated keys and special orders of keys are not supported")
        empty = {meta.root == NO_PAGE, meta.depth == 0, meta.entries == 0}
        if len(empty) != 1 or meta.depth > MOST_LEVELS:
            raise ValueError("the description of its tree contradicts itself")
        self._pages = data.size // self._page_size
        self._page = lru_cache(PAGES_KEPT)(self._load)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        number = self._root
        for level in range(self._depth, 1, -1):
            page = self._page(number, level)
            # The first key of a branch is not kept: it stands for all that come before the second.
            number = page.child(bisect_right(range(len(page.nodes)), key, 1, key=page.key) - 1)
        if self._depth == 0:
            return None
        leaf = self._page(number, 1)
        place = bisect_left(range(len(leaf.nodes)), key, key=leaf.key)
        if place == len(leaf.nodes) or leaf.key(place) != key:
            return None
        value = leaf.value(place)
        if not value.elsewhere:
            return leaf.data[value.start : value.start + value.size]
        return self._large(value)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Every key and the bytes of its value, in the order of keys. Values are not touched."""
        count, last = 0, b""
        for leaf in self._leaves(self._root, self._depth):
            for place in range(len(leaf.nodes)):
                value = leaf.value(place)
                # Keys that must grow, in leaves that are never empty: no tree can lead round in circles.
                if value.key <= last:
                    raise ValueError(f"page {leaf.number}: its keys are not in order")
                if value.elsewhere:
                    self._check_large(value)
                yield value.key, value.size
                count, last = count + 1, value.key
        if count != self.entries:
            raise ValueError(f"{count} entries where it says {self.entries}")

    def _leaves(self, number: int, level: int) -> Iterator[_Page]:
        if level <= 1:
            yield from [self._page(number, 1)] if level else []
            return
        page = self._page(number, level)
        children = [page.child(place) for place in range(len(page.nodes))]
        if level > 2:
            for child in children:
                yield from self._leaves(child, level - 1)
            return
        for first in range(0, len(children), BATCH):
            batch = children[first : first + BATCH]
            found = self._load_all(batch)
            yield from (found[child] for child in batch)

    def _load_all(self, numbers: list[int]) -> dict[int, _Page]:
        """Leaves, near ones by one read."""
        wanted, runs, found = set(numbers), _runs(numbers), {}
        for run, data in zip(runs, self._read_all(runs)):
            for number in wanted.intersection(run):
                start = (number - run.start) * self._page_size
                found[number] = self._parse(number, 1, data[start : start + self._page_size])
        return found

    def _read_all(self, runs: list[range]) -> Iterable[bytes]:
        if self._readers == 1 or len(runs) == 1:
            return map(self._read, runs)
        with ThreadPoolExecutor(self._readers) as pool:
            return list(pool.map(self._read, runs))

    def _load(self, number: int, level: int) -> _Page:
        return self._parse(number, level, self._read(range(number, number + 1)))

    def _read(self, run: range) -> bytes:
        if run.stop > self._pages:
            raise ValueError(f"page {run.stop - 1} lies behind the end of the file")
        return self._data.read(run.start * self._page_size, run.stop * self._page_size)

    def _parse(self, number: int, level: int, data: bytes) -> _Page:
        """Raises ValueError unless `data` is page `number`, a leaf on level 1 and else a branch."""
        size = self._page_size
        kind = LEAF if level == 1 else BRANCH
        if len(data) == size:
            own, _, flags, lower, upper = PAGE.unpack_from(data)
            if own == number and flags & KINDS == kind and PAGE.size + 2 <= lower <= upper <= size:
                nodes = struct.unpack_from(f"<{(lower - PAGE.size) // 2}H", data, PAGE.size)
                if upper <= min(nodes) and max(nodes) <= size - NODE.size:
                    return _Page(number, data, nodes)
        raise ValueError(f"page {number} is damaged")

    def _large(self, value: Value) -> bytes:
        self._check_large(value)
        start = value.start * self._page_size
        end = start + PAGE.size + value.size
        data = self._data.read(start, end).ljust(PAGE.size, b"\0")
        own, _, flags, low, high = PAGE.unpack_from(data)
        sound = own == value.start and flags & KINDS == LARGE_VALUE
        reserved = (low | high << 16) * self._page_size
        if not sound or not len(data) == end - start <= reserved:
            raise ValueError(f"page {value.start} is damaged")
        return data[PAGE.size :]

    def _check_large(self, value: Value) -> None:
        if value.start * self._page_size + PAGE.size + value.size > self._data.size:
            raise ValueError(f"the value on page {value.start} reaches behind the end of the file")


class _Meta(NamedTuple):
    page_size: int
    flags: int
    depth: int
    entries: int
    root: int
    transaction: int


def _newest_meta(data: Ranges) -> _Meta:
    first = _meta(data, 0)
    if first.page_size not in PAGE_SIZES:
        raise ValueError(f"pages of {first.page_size} bytes")
    second = _meta(data, first.page_size)
    return second if second.transaction > first.transaction else first


def _meta(data: Ranges, page: int) -> _Meta:
    described = data.read(page + PAGE.size, page + PAGE.size + META.size)
    magic, version, *numbers = META.unpack(described.ljust(META.size, b"\0"))
    if (magic, version) != (MAGIC, VERSION) or len(described) < META.size:
        raise ValueError("not an LMDB, or of a version that is not read here")
    return _Meta(*numbers)


def _runs(numbers: list[int]) -> list[range]:
    """Few ranges that hold all of `numbers`, no wider than BATCH."""
    runs: list[range] = []
    for number in sorted(numbers):
        last = runs[-1] if runs else range(0)
        if last and number < min(last.stop + GAP, last.start + BATCH):
            runs[-1] = range(last.start, max(last.stop, number + 1))
        else:
            runs.append(range(number, number + 1))
    return runs
