"""The bytes of a shard's tar, wherever it lies; its size is checked before the first is read."""

import os
from typing import Protocol

from pipeline.cache import Cache
from pipeline.errors import UserError
from pipeline.shards import Shard, ShardSet
from pipeline.store import Location


class Tar(Protocol):
    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer where the file ends before."""
        ...


class Tars:
    """The tars of a shard set; the `capacity` used last stay open."""

    def __init__(self, shard_set: ShardSet, capacity: int) -> None:
        self._shard_set = shard_set
        self._open: Cache[tuple[int, str], Tar] = Cache(capacity)
        self._checked: set[tuple[int, str]] = set()

    def get(self, shard: Shard) -> Tar:
        """Raises UserError on a tar that is missing or has not the size that the manifest says."""
        return self._open.get((shard.variant, shard.name), lambda: self._open_tar(shard))

    def _open_tar(self, shard: Shard) -> Tar:
        location = self._shard_set.tar(shard)
        try:
            if (shard.variant, shard.name) not in self._checked:
                self._check_size(location, shard)
                self._checked.add((shard.variant, shard.name))
            return _LocalTar(location) if location.is_local else _RemoteTar(location)
        except FileNotFoundError:
            raise UserError(
                f"{location.url} is missing, though the manifest names it. Bring it back, or run the "
                "sharding job again."
            ) from None

    def _check_size(self, location: Location, shard: Shard) -> None:
        size = location.size()
        if size != shard.tar_bytes:
            raise UserError(
                f"{location.url} has {size} bytes, but the manifest says {shard.tar_bytes}: it was cut or "
                f"exchanged. `python -m sharding verify {self._shard_set.url}` tells what else is wrong."
            )


class _LocalTar:
    """Reads by pread: no shared file position, and the interpreter is free meanwhile."""

    def __init__(self, location: Location) -> None:
        self._file = os.open(location.path, os.O_RDONLY)

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._file, end - start, start)

    def __del__(self) -> None:
        os.close(self._file)


class _RemoteTar:
    def __init__(self, location: Location) -> None:
        self._location = location

    def read(self, start: int, end: int) -> bytes:
        return self._location.read(start, end)
