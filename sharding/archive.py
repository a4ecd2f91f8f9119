"""Archives read in place: what a zip or tar holds and where, without unpacking anything.

A member is a range of the archive (stored), a compressed range (deflated) or a range of what a gzipped
tar inflates to. Names that leave the archive's folder, links and devices are not members.
"""

import json
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Literal, NamedTuple

from pipeline.errors import UserError
from sharding.ranges import MOST_BYTES, Inflated, RangeFile, Ranges, Window

PART = re.compile(r"(?P<name>.+\.(?:tar|tar\.gz|tgz|zip))\.(?:(?!bz|br)[a-d][a-z]|\d{2,3})")
"""A piece of a split archive: `images.tar.aa`, `lup.zip.001`."""
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
UNREAD = re.compile(
    r".+\.(?:tar\.(?:bz2?|xz|zst|lz4?|lzma)|tbz2?|txz|tzst|7z|rar)(?:\.\d+)?|.+\.z\d\d",
    re.IGNORECASE,
)
"""Archives of other kinds, and pieces of them."""
MOST_HEADER = 1 << 15
"""Bytes of a tar's long name or pax header. Python's search in it takes quadratic time."""
ZIP_HEADER = 30
ENCRYPTED = 1

Kind = Literal["stored", "deflated", "gzipped"]


class Member(NamedTuple):
    """Where a member's bytes lie."""

    kind: Kind
    start: int
    """Of the data; of a zip's member, of the header before it; gzipped: in the inflated stream."""
    stored: int
    """Bytes in the archive."""
    size: int
    crc: int | None

    def dumps(self, parts: tuple[str, ...]) -> str:
        return json.dumps([parts, *self])

    @staticmethod
    def loads(text: str) -> "tuple[tuple[str, ...], Member]":
        parts, *fields = json.loads(text)
        return tuple(parts), Member(*fields)


@dataclass
class Contents:
    name: str
    members: dict[str, Member] = field(default_factory=dict)
    unread: str = ""
    """Why some or all of it is not among the members."""

    def add(self, name: str, member: Member) -> None:
        """Raises UserError if it is there already."""
        path = safe_path(name)
        if path is None:
            self.unread = f"{name!r} of {self.name} is not a path below its folder"
        elif path in self.members:
            raise UserError(
                f"{self.name} holds {path!r} twice, and which one is meant cannot be known: unpack it."
            )
        else:
            self.members[path] = member


def archive_name(file: str) -> str | None:
    """The archive that `file` is, or is a part of."""
    match = PART.fullmatch(file)
    name = match["name"] if match else file
    return name if name.lower().endswith(ENDINGS) else None


def check_parts(name: str, parts: list[str]) -> None:
    """Raises UserError if one before the last of the archive's sorted `parts` is missing."""
    places = [_place(part) for part in parts]
    first = min(places[0], 1) if parts[0][-1].isdecimal() else 0
    if places != list(range(first, first + len(parts))):
        raise UserError(f"{name} is in parts and not all are there: found {', '.join(parts)}.")


def _place(part: str) -> int:
    """001 and ab are 1."""
    text = part.rpartition(".")[2]
    return int(text) if text.isdecimal() else 26 * ord(text[0]) + ord(text[1]) - 27 * ord("a")


def list_archive(name: str, data: Ranges, ahead: int) -> Contents:
    """Reads `ahead` bytes at least at once. Raises UserError if it is damaged or holds one name twice."""
    if not data.size:
        raise UserError(f"{name} is empty: download or copy it again.")
    lower = name.lower()
    try:
        if lower.endswith(".zip"):
            return _list_zip(name, _Reader(data, ahead, MOST_BYTES))
        if lower.endswith(".tar"):
            return _list_tar(name, data, "stored", ahead)
        return _list_tar(name, Inflated(data, wbits=31), "gzipped", ahead)
    except (OSError, UserError):
        raise
    except Exception as error:  # whatever Python's readers run into in a damaged file
        raise UserError(f"{name} cannot be read ({error}): download or copy it again.") from None


def read_member(data: Ranges, member: Member, inflated: Callable[[], Ranges]) -> bytes:
    """A member's bytes. Raises ValueError if they are damaged or too many."""
    largest = max(member.size, member.stored)
    if largest > MOST_BYTES:
        raise ValueError(f"{largest:,} bytes, more than {MOST_BYTES:,}")
    if member.crc is None:
        source = inflated() if member.kind == "gzipped" else data
        found = source.read(member.start, member.start + member.size)
    else:
        found = _read_zipped(data, member)
    if len(found) != member.size:
        raise ValueError(f"{len(found)} bytes where the archive lists {member.size}")
    if member.crc is not None and zlib.crc32(found) != member.crc:
        raise ValueError("the archive's checksum does not match")
    return found


def open_member(data: Ranges, member: Member, inflated: Callable[[], Ranges]) -> Ranges:
    """Random access to a member, however large. Of a zip's the checksum is not looked at."""
    if member.kind == "gzipped":
        return Window(inflated(), member.start, member.size)
    if member.crc is None:
        return Window(data, member.start, member.size)
    body = Window(data, _zip_body(data, member), member.stored)
    return body if member.kind == "stored" else Inflated(body, wbits=-15, size=member.size)


def _list_zip(name: str, file: "_Reader") -> Contents:
    contents = Contents(name)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.header_offset < 0:
                raise zipfile.BadZipFile("a member before its start")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in (0, stat.S_IFREG):
                continue
            if info.flag_bits & ENCRYPTED:
                contents.unread = f"{name} is encrypted: unpack it with its password"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                contents.unread = f"{name} is packed by an unusual method: unpack it"
            else:
                stored = info.compress_type == zipfile.ZIP_STORED
                member = Member(
                    "stored" if stored else "deflated",
                    info.header_offset,
                    info.compress_size,
                    info.file_size,
                    info.CRC,
                )
                contents.add(info.filename, member)
    return contents


def _list_tar(name: str, data: Ranges, kind: Kind, ahead: int) -> Contents:
    contents = Contents(name)
    with tarfile.open(fileobj=_Reader(data, ahead, MOST_HEADER), mode="r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            if archive.offset <= info.offset:  # type: ignore[attr-defined]
                raise tarfile.ReadError("a member of less than no bytes")
            if info.isreg() and not info.sparse:
                contents.add(info.name, Member(kind, info.offset_data, info.size, info.size, None))
        # tarfile takes a header that it cannot read for the end: there are zeros at the real one.
        end = archive.offset  # type: ignore[attr-defined]
    if data.read(end, end + tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut at byte {end:,}")
    return contents


class _Reader(BufferedReader):
    """For Python's readers of archives, which allocate whatever a header claims."""

    def __init__(self, data: Ranges, ahead: int, most: int) -> None:
        super().__init__(RangeFile(data), ahead)
        self._data, self._most = data, most

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._data.size - self.tell() if size is None or size == -1 else size
        if not 0 <= wanted <= self._most:
            raise ValueError(f"a header of {wanted:,} bytes, more than {self._most:,}")
        return super().read(wanted)


def safe_path(name: str) -> str | None:
    """`name` as a path below the archive's folder, or None if it is not one."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or not parts or ".." in parts or "\0" in name or "\\" in name:
        return None
    return "/".join(parts)


def _read_zipped(data: Ranges, member: Member) -> bytes:
    """Reads header and body at once: the header's length is known only when it is read."""
    guess = member.start + ZIP_HEADER + 512
    head = data.read(member.start, guess + member.stored)
    start = _body_start(head)
    body = head[start : start + member.stored]
    if len(body) < member.stored:
        body = data.read(member.start + start, member.start + start + member.stored)
    if member.kind == "stored":
        return body
    try:
        return zlib.decompressobj(-15).decompress(body, member.size + 1)
    except zlib.error as error:
        raise ValueError(f"cannot be inflated ({error})") from None


def _zip_body(data: Ranges, member: Member) -> int:
    return member.start + _body_start(data.read(member.start, member.start + ZIP_HEADER))


def _body_start(head: bytes) -> int:
    if head[:4] != b"PK\x03\x04" or len(head) < ZIP_HEADER:
        raise ValueError("the archive has no member where it lists one")
    name, extra = struct.unpack("<HH", head[26:30])
    return ZIP_HEADER + int(name) + int(extra)
