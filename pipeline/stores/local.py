"""Whole files of a store on this machine's disk."""

import hashlib
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.stores.store import Location


def allow_open_files() -> None:
    """As many as the system grants this process: every shard near a position is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a system that grants fewer than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """The file itself, or what was downloaded of it. Raises FileNotFoundError."""
    if location.is_local:
        yield Path(location.path)
        return
    with tempfile.NamedTemporaryFile() as copy:
        location.download(copy.name)
        yield Path(copy.name)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
