"""Shards on this node's own disk: fetched once for all its processes, those used last kept up to a limit.

FOLDER/SHA256.tar    a whole shard; as long as somebody reads it, it is not evicted, which would free nothing
FOLDER/SHA256.part   a shard on its way; unlocked, its fetcher was killed

Files are named by content, so several jobs and generations of a set share a folder. They are read by pread:
all ranks share the system's page cache as with a mapping, but where somebody truncates a file, a read is
short, and a mapping would kill the process (SIGBUS). A file found here is checked by its size; its hash was
checked when it came.
"""

import errno
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.shards import Shard
from pipeline.stores.cache_files import claimed, if_unused, open_whole
from pipeline.stores.genuine import check_sha256, check_size
from pipeline.stores.read_stats import ReadStats
from pipeline.stores.replacement import remove_if_dead
from pipeline.stores.store import Location
from pipeline.stores.waiting import pause, waiting_for

CHUNK = 8 << 20
"""Bytes of one request: what a failed one repeats, and what a fetch holds in memory."""
OURS = re.compile(r"[0-9a-f]{64}\.(tar|part)")
FETCHES = 2
"""A hash that is wrong on arrival may be the network's fault, once."""
LOOK_S = 0.5
"""Between two looks at whether there is room."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class CacheConfig(Config):
    """Where the shards of stores are kept on a node."""

    folder: str
    """On the node's own disk: the ranks meet there, and other jobs of the node that read the same shards."""
    limit_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """10^9 bytes. Shards that are open or on their way are kept even beyond it."""
    ahead: Annotated[int, Field(gt=0)] = 32
    """Micro-batches whose shards are fetched before their turn."""
    fetches: Annotated[int, Field(gt=0)] = 4
    """Shards that a rank fetches at once, ahead of their turn."""

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, folder: str) -> str:
        if not folder or "://" in folder:
            raise ValueError(f"{folder!r} is not a folder on a disk of this node")
        return folder


def at_once() -> bool:
    """Of a fetch that is needed now, not ahead of need."""
    return False


class NodeCache:
    """Safe in threads and processes; whoever of them comes first fetches, the others wait for it."""

    def __init__(self, config: CacheConfig) -> None:
        """Raises UserError if the folder cannot be made."""
        self._folder = Path(config.folder).expanduser()
        self._limit = int(config.limit_gb * 1e9)
        self._said_needed = 0
        """Bytes, when the limit was last said to be too small."""
        with self._own_errors(0):
            self._folder.mkdir(parents=True, exist_ok=True)
            for part in self._folder.glob("*.part"):
                if OURS.fullmatch(part.name):
                    remove_if_dead(part)

    def open(
        self,
        location: Location,
        shard: Shard,
        stats: ReadStats,
        can_wait: Callable[[], bool] = at_once,
    ) -> int:
        """A descriptor of the whole tar, to be closed by the caller; until then it is not evicted.

        A limit that is too small is said, unless `can_wait`. Raises UserError on a tar that cannot be had.
        """
        final = Path(self.place(shard).path)
        with self._own_errors(shard.tar_bytes):
            ready = open_whole(final, shard.tar_bytes)
            if ready is not None:
                stats.add(hits=1)
                return ready
            with waiting_for(location.url):
                return self._wait_or_fetch(final, location, shard, stats, can_wait)

    def wait_for_room(self, shard: Shard, can_wait: Callable[[], bool]) -> None:
        """Until the tar is there or has room; no longer than while `can_wait`."""
        final = Path(self.place(shard).path)
        with self._own_errors(shard.tar_bytes):
            while can_wait() and not final.exists() and not self._has_room(shard.tar_bytes):
                pause(LOOK_S)

    def place(self, shard: Shard) -> Location:
        """Of the shard, if it is there."""
        return Location(str(self._folder / f"{shard.tar_sha256}.tar"))

    def _wait_or_fetch(
        self,
        final: Path,
        location: Location,
        shard: Shard,
        stats: ReadStats,
        can_wait: Callable[[], bool],
    ) -> int:
        while True:
            with claimed(final.with_suffix(".part"), location) as part:
                # Asked first: what was renamed is locked by us, and opening it would wait for ever.
                if not part.is_ours():
                    continue
                ready = open_whole(final, shard.tar_bytes)
                if ready is not None:
                    stats.add(hits=1)
                    return ready
                with location.needed():
                    check_size(location, location.size(), shard)
                self._reserve(part.file, shard.tar_bytes, can_wait)
                self._fetch(part.file, location, shard, stats)
                part.publish(final)
                stats.add(misses=1)
                return os.dup(part.file)

    def _fetch(self, file: int, location: Location, shard: Shard, stats: ReadStats) -> None:
        """Fills `file` with the tar. Raises UserError if it has another hash than the manifest says."""
        found = ""
        for _ in range(FETCHES):
            found = _download(file, location, shard.tar_bytes, stats)
            if found == shard.tar_sha256:
                break
        check_sha256(location, found, shard)
        os.fsync(file)

    def _reserve(self, file: int, size: int, can_wait: Callable[[], bool]) -> None:
        """Takes the room at once, so that the limit and the disk speak before the network is used."""
        os.ftruncate(file, 0)  # what a killed fetcher left
        with Location(str(self._folder)).exclusive():
            beyond = self._make_room(size)
            os.posix_fallocate(file, 0, size)
        needed = self._limit + beyond
        if beyond > 0 and needed >= 2 * self._said_needed and not can_wait():
            self._said_needed = needed
            print(
                f"the cache in {self._folder} is too small: the shards that are read at once need "
                f"at least {needed / 1e9:.3g} GB, its limit_gb is {self._limit / 1e9:.3g}. They are kept "
                "beyond it while they are open; others are fetched again whenever they are needed. Raise "
                "the limit.",
                file=sys.stderr,
            )

    def _make_room(self, size: int) -> int:
        """Evicts what was not used for longest. Returns the bytes that then still are too many."""
        entries = self._entries()
        beyond = sum(entry.size for entry in entries) + size - self._limit
        for entry in sorted(entries, key=lambda entry: entry.used_ns):
            if beyond <= 0:
                break
            with if_unused(entry.path) as unused:
                if unused:
                    entry.path.unlink(missing_ok=True)
                    beyond -= entry.size
        return beyond

    def _has_room(self, size: int) -> bool:
        """Whether `size` bytes fit beside what is in use."""
        in_use = 0
        for entry in self._entries():
            with if_unused(entry.path) as unused:
                in_use += 0 if unused else entry.size
        return in_use + size <= self._limit

    def _entries(self) -> list["_Entry"]:
        entries = []
        for path in self._folder.iterdir():
            if OURS.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    entries.append(_Entry(path, stat.st_size, stat.st_mtime_ns))
        return entries

    @contextmanager
    def _own_errors(self, needed: int) -> Iterator[None]:
        """Raises UserError on what the folder's own disk complains about."""
        try:
            yield
        except OSError as error:
            full = f" {needed} bytes have no room there." if error.errno in NO_ROOM else ""
            raise UserError(
                f"the cache in {self._folder} cannot be used ({error.strerror or error}).{full} Its limit_gb "
                f"is {self._limit / 1e9:g}: make room on the disk, lower the limit, or name another folder."
            ) from None


class _Entry(NamedTuple):
    path: Path
    size: int
    used_ns: int


def _download(file: int, location: Location, size: int, stats: ReadStats) -> str:
    """Fills `file`; returns the sha256 of what came."""
    digest = hashlib.sha256()
    with open(file, "r+b", closefd=False) as out:
        out.seek(0)
        for start in range(0, size, CHUNK):
            with location.needed():
                data = location.read(start, min(start + CHUNK, size))
            digest.update(data)
            stats.add(fetched=len(data))
            out.write(data)
            pause(0)
    return digest.hexdigest()
