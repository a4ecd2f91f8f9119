"""Files that are whole or not there, for whoever reads them and after a crash."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, mark: str = "writing") -> Iterator[Path]:
    """A file beside `path` to be written in the block, which then takes its place.

    mark: of its name, to be told apart where several may write `path`.
    """
    temporary = path.with_name(f".{path.name}.{mark}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # its space may be what is missing
        raise


def write_atomically(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def sync(path: Path) -> None:
    """To the disk: a file's content, a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
