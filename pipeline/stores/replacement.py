"""Files that take their place whole or not at all, and leave nothing behind when their writer is killed."""

import fcntl
import os
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

SCRATCH_PATTERN = f".*.{'[0-9a-f]' * 32}.tmp"


class Replacement(Protocol):
    file: BinaryIO

    def publish(self) -> None:
        """Puts the file in its place, replacing what was there. Raises OSError."""
        ...

    def close(self) -> None:
        """Unpublished, the file vanishes."""
        ...


class LocalReplacement:
    """A hidden file beside the final one. Its lock tells others that its writer lives."""

    def __init__(self, target: str) -> None:
        self._target = Path(target)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self.file, self._scratch = self._open()
        while not self._scratch.exists():  # taken for a dead writer's before it was locked
            self.file.close()
            self.file, self._scratch = self._open()

    def _open(self) -> tuple[BinaryIO, Path]:
        scratch = self._target.with_name(f".{self._target.name}.{uuid.uuid4().hex}.tmp")
        file = open(scratch, "xb")  # noqa: SIM115
        with suppress(OSError):  # a file system without locks: it is taken for a dead writer's
            fcntl.flock(file, fcntl.LOCK_EX)
        return file, scratch

    def publish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self._scratch, self._target)
        sync_folder(self._target.parent)

    def close(self) -> None:
        try:
            self.file.close()  # fails if what it still has to write finds no room
        finally:
            self._scratch.unlink(missing_ok=True)


class RemoteReplacement:
    """A local file without a name, so that the system removes it however its writer ends."""

    def __init__(self, upload: Callable[[str], None]) -> None:
        self._upload = upload
        self.file: BinaryIO = tempfile.TemporaryFile()  # type: ignore[assignment]  # noqa: SIM115

    def publish(self) -> None:
        self.file.flush()
        self._upload(f"/proc/self/fd/{self.file.fileno()}")

    def close(self) -> None:
        self.file.close()


def remove_if_dead(scratch: Path) -> None:
    """Removes a scratch file unless its writer lives."""
    with suppress(FileNotFoundError, IsADirectoryError), open(scratch, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # no locks here: nobody can hold one
            pass
        scratch.unlink()


def sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power cut, where the file system can."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(opened)
    finally:
        os.close(opened)
