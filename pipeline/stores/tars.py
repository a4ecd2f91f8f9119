"""The bytes of a shard's tar, read in place, out of the node's cache, or by ranges from a store."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pipeline.cache import Cache
from pipeline.shards import Shard, ShardSet
from pipeline.stores.genuine import check_sha256, check_size
from pipeline.stores.local import file_sha256
from pipeline.stores.node_cache import NodeCache, at_once
from pipeline.stores.read_stats import ReadStats
from pipeline.stores.store import Location


class Tar(Protocol):
    @property
    def location(self) -> Location:
        """What is read: the tar, or this node's copy of it."""
        ...

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer where the file ends before. Raises UserError if they cannot be had."""
        ...


class Tars:
    """The tars of a shard set; the `capacity` used last stay open.

    Those of a store come whole out of `cache`, or by ranges where there is none. A tar in place is checked by
    its size, once; with `check_hashes` by its hash as well, which reads all of it.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        capacity: int,
        cache: NodeCache | None = None,
        check_hashes: bool = False,
    ) -> None:
        self.stats = ReadStats()
        self._shard_set, self._node_cache, self._check_hashes = shard_set, cache, check_hashes
        self._open: Cache[tuple[int, str], Tar] = Cache(capacity)
        self._checked: set[tuple[int, str]] = set()

    def get(self, shard: Shard, can_wait: Callable[[], bool] = at_once) -> Tar:
        """Raises UserError on a tar that is missing, cannot be read, or is not the manifest's."""
        place = shard.variant, shard.name
        return self._open.get(place, lambda: self._open_tar(shard, can_wait))

    def fetch(self, shard: Shard, can_wait: Callable[[], bool]) -> None:
        """`get` ahead of need: while `can_wait`, not before there is room in the cache."""
        # Not inside `get`: whoever needs the tar by then would wait for this, and this for them.
        if self._node_cache is not None and not self._shard_set.tar(shard).is_local:
            self._node_cache.wait_for_room(shard, can_wait)
        self.get(shard, can_wait)

    def _open_tar(self, shard: Shard, can_wait: Callable[[], bool]) -> Tar:
        location = self._shard_set.tar(shard)
        if location.is_local:
            return self._open_local(location, shard)
        if self._node_cache is not None:
            file = self._node_cache.open(location, shard, self.stats, can_wait)
            return _FileTar(self._node_cache.place(shard), file, self.stats)
        if (shard.variant, shard.name) not in self._checked:
            with location.needed():
                check_size(location, location.size(), shard)
            self._checked.add((shard.variant, shard.name))
        return _RemoteTar(location, self.stats)

    def _open_local(self, location: Location, shard: Shard) -> Tar:
        with location.needed():
            tar = _FileTar(location, os.open(location.path, os.O_RDONLY), self.stats)
            if (shard.variant, shard.name) not in self._checked:
                check_size(location, location.size(), shard)
                if self._check_hashes:
                    check_sha256(location, file_sha256(Path(location.path)), shard)
                self._checked.add((shard.variant, shard.name))
            return tar


class _FileTar:
    """Reads by pread: no shared file position, and the interpreter is free meanwhile."""

    def __init__(self, location: Location, file: int, stats: ReadStats) -> None:
        self.location, self._file, self._stats = location, file, stats

    def read(self, start: int, end: int) -> bytes:
        with self.location.needed():
            data = os.pread(self._file, end - start, start)
        self._stats.add(read=len(data))
        return data

    def __del__(self) -> None:
        os.close(self._file)


class _RemoteTar:
    def __init__(self, location: Location, stats: ReadStats) -> None:
        self.location, self._stats = location, stats

    def read(self, start: int, end: int) -> bytes:
        with self.location.needed():
            data = self.location.read(start, end)
        self._stats.add(read=len(data), fetched=len(data))
        return data
