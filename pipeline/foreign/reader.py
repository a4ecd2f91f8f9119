"""A tar that another tool wrote: what its samples are, and where in it their bytes lie.

What a sample is, webdataset's own reader says; where its members lie, Python's tarfile. Both go over
the tar in step and have to agree. Nothing is decoded by a member's name.
"""

import re
import tarfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from webdataset import tariterators

IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png"))
JSON = "json"
WANTED = re.compile(r"\.(?:jpe?g|png|json)$", re.IGNORECASE)
"""Other members are not even read: one may be larger than the memory."""
MAX_MEMBER_BYTES = 256 << 20
END_BLOCK = 512
SEEN_END_BYTES = 1 << 20


class ForeignTar(Exception):
    """A tar that cannot be indexed as a whole; the message says why."""


@dataclass(frozen=True)
class Member:
    offset: int
    """Of its bytes in the tar."""
    size: int
    data: bytes | None
    """None unless it is an image or JSON by its name, of at most MAX_MEMBER_BYTES."""


@dataclass(frozen=True)
class ForeignSample:
    name: str
    """What webdataset calls its key: the members' common name up to the first dot."""
    members: Mapping[str, Member]
    """By extension: all that follows the first dot, in small letters."""

    @property
    def images(self) -> list[str]:
        return sorted(self.members.keys() & IMAGE_EXTENSIONS)

    @property
    def json(self) -> Member | None:
        return self.members.get(JSON)

    @property
    def hidden_images(self) -> bool:
        """Whether it has images whose names have a dot too many: `a.1.jpg` is a `1.jpg` of `a`."""
        return any(WANTED.search(name) for name in self.members if not name.endswith(JSON))

    def others(self) -> Counter[str]:
        """What is left alone, by the last part of its extension."""
        others = self.members.keys() - IMAGE_EXTENSIONS - {JSON}
        return Counter(printable(name.rpartition(".")[2]) for name in others)


def read_samples(path: Path) -> Iterator[ForeignSample]:
    """In the tar's order, one in memory at a time. Raises ForeignTar."""
    try:
        with open(path, "rb") as file:
            for sample in tariterators.group_by_keys(_members(path, file)):
                members = {name: one for name, one in sample.items() if not name.startswith("__")}
                yield ForeignSample(printable(sample["__key__"]), members)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        why = str(error.args[0]) if error.args else repr(error)
        raise ForeignTar(f"it cannot be read as a plain tar: {why}") from None


def printable(name: str) -> str:
    """A member's name in characters that can be stored: tars hold any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _members(path: Path, file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Each member as webdataset's grouping wants it, its data a `Member`."""
    passed: deque[tarfile.TarInfo] = deque()

    def is_read(name: str) -> bool:
        header = _next(headers, name)
        passed.append(header)
        return WANTED.search(name) is not None and header.size <= MAX_MEMBER_BYTES

    with tarfile.open(path, "r:") as headers, open(path, "rb") as stream:
        for found in tariterators.tar_file_iterator(stream, select_files=is_read):
            while len(passed) > 1:
                yield _member(passed.popleft(), None)
            yield _member(_in_one_piece(file, passed.popleft(), found["data"]), found["data"])
        while passed:
            yield _member(passed.popleft(), None)
        _to_end(headers)
        _check_end(file, headers.offset)


def _next(headers: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    """The next header of a file called `name`: what comes before it, webdataset left out."""
    while (header := headers.next()) is not None:
        _drop(headers)
        if header.name == name and header.isreg():
            return header
    raise ForeignTar(f"webdataset reads a {name!r} in it that tarfile does not find")


def _in_one_piece(file: BinaryIO, header: tarfile.TarInfo, data: bytes) -> tarfile.TarInfo:
    file.seek(header.offset_data)
    if len(data) != header.size or file.read(len(data)) != data:
        raise ForeignTar(f"{header.name!r} is not stored in one piece")
    return header


def _member(header: tarfile.TarInfo, data: bytes | None) -> dict[str, Any]:
    member = Member(header.offset_data, header.size, data)
    return {"fname": header.name, "data": member, "__url__": ""}


def _to_end(headers: tarfile.TarFile) -> None:
    while headers.next() is not None:
        _drop(headers)


def _drop(headers: tarfile.TarFile) -> None:
    """Or all headers read stay in memory."""
    headers.members = []  # type: ignore[attr-defined]


def _check_end(file: BinaryIO, end: int) -> None:
    """tarfile, and webdataset with it, takes whatever is no header for the end, and says nothing."""
    file.seek(end)
    rest = file.read(SEEN_END_BYTES)
    if len(rest) < END_BLOCK or rest.strip(b"\0"):
        raise ForeignTar(
            f"no end mark at byte {end}, where its last readable member ends: it was cut, damaged, or "
            "another tar was appended"
        )
