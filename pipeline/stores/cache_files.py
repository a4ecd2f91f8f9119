"""The files of a node's cache: which are whole, which are on their way, and who is at them.

SHA256.part is locked by who fetches it and becomes SHA256.tar by a rename; a reader of SHA256.tar holds a
shared lock.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.stores.replacement import sync_folder
from pipeline.stores.store import Location
from pipeline.stores.waiting import pause

LOOK_S = 0.1
"""Between two looks at another process's fetch."""
STALLED_S = 300
"""Without a byte; well above what a store may take to answer one request (`store.STORE_ATTEMPTS`)."""


class Claim(NamedTuple):
    """An opened part file, and its name."""

    path: Path
    file: int

    def is_ours(self) -> bool:
        """Not if whoever had the lock has renamed or removed the file meanwhile."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.file), self.path.stat())
        return False

    def publish(self, final: Path) -> None:
        """The lock becomes that of a reader."""
        os.replace(self.path, final)
        sync_folder(final.parent)
        try_lock(self.file, fcntl.LOCK_SH)


@contextmanager
def claimed(path: Path, location: Location) -> Iterator[Claim]:
    """Locked, or no longer ours: waits for whoever fetches the same. Unpublished, the file vanishes."""
    claim = Claim(path, os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    try:
        _wait_for_lock(claim, location)
        try:
            yield claim
        finally:
            if claim.is_ours():
                path.unlink()
    finally:
        os.close(claim.file)


def _wait_for_lock(claim: Claim, location: Location) -> None:
    """Ends as well when the file has been renamed or removed."""
    written, since = 0, time.monotonic()
    while not try_lock(claim.file, fcntl.LOCK_EX | fcntl.LOCK_NB) and claim.is_ours():
        last_write = os.fstat(claim.file).st_mtime_ns
        if last_write != written:
            written, since = last_write, time.monotonic()
        if time.monotonic() - since > STALLED_S:
            raise UserError(
                f"another process of this node fetches {location.url} into {claim.path}, and has not "
                f"received a byte for {STALLED_S} s. End it, or look at what holds it up."
            )
        pause(LOOK_S)


@contextmanager
def if_unused(path: Path) -> Iterator[bool]:
    """Whether it is a whole shard that nobody reads; nobody begins to before the end of this."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield path.suffix == ".tar" and try_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(file)


def open_whole(path: Path, size: int) -> int | None:
    """A descriptor with a reader's lock; None if it is not there, or was cut."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try_lock(file, fcntl.LOCK_SH)
    if os.fstat(file).st_size != size:
        os.close(file)
        return None
    with suppress(OSError):  # another user's: then it keeps its age
        os.utime(file)
    return file


def try_lock(file: int, kind: int) -> bool:
    """Whether it was got. A file system without locks says yes: its files are evicted while they are read."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
