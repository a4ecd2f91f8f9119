"""A native release where it lies: a folder or bucket, with archives as downloaded, read in place.

What zip and tar files directly in the folder hold appears as if unpacked there; a file that really is
there comes first. So an adapter sees one tree, whatever was unpacked and wherever it lies.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.stores.store import Location
from sharding.archive import (
    UNREAD,
    Member,
    archive_name,
    check_parts,
    list_archive,
    open_member,
    read_member,
    safe_path,
)
from sharding.ranges import MOST_BYTES, Inflated, Joined, RangeFile, Ranges

SHOWN = 8
OPEN_FILES = 64
LOCAL_AHEAD, REMOTE_AHEAD = 1 << 12, 1 << 20
"""Bytes read at once when an archive is listed: a store takes as long for one as for a million."""
MEMBER = "\0"
"""First character of a member's locator; no path has it."""
LARGE = "\1"
"""First character of the locator of a store's file that was listed as too large to be read whole: a read of
any other need not ask for its size first."""

Parts = tuple[str, ...]
"""Paths below the source of the parts of an archive; `` is the source itself."""


class SourceFile(NamedTuple):
    locator: str
    """What `Source.read` and `Source.open` take: the path of a file, or where a member lies."""
    size: int


@dataclass(frozen=True)
class Source:
    """The release at `url`: a local folder, one archive file, or either in a store.

    Nothing of it is kept but the URL, so that it can be sent to workers. Paths are relative, with `/`.
    Reading raises FileNotFoundError, ValueError on damaged members and OSError on what may pass.
    """

    url: str

    def __reduce__(self) -> tuple[type["Source"], tuple[str]]:
        return Source, (self.url,)

    def files(self, under: str = "", suffix: str = "") -> dict[str, SourceFile]:
        """Path -> file, of all at any depth below the folder `under` whose path ends in `suffix`.

        Hidden files are not seen. Raises UserError on a name that cannot be written into shards.
        """
        return dict(self.scan(under, suffix))

    def scan(self, under: str = "", suffix: str = "") -> Iterator[tuple[str, SourceFile]]:
        """`files` one by one: those of a local folder are not held; a store's listing is, 1 kB a file."""
        prefix = f"{under.strip('/')}/" if under.strip("/") else ""
        seen = set()
        for path, size in self._loose(prefix):
            if path.endswith(suffix):
                self._check_name(path)
                if self._members:
                    seen.add(path)
                yield path, self._loose_file(path, size)
        for path, (parts, member) in self._members.items():
            if path.startswith(prefix) and path.endswith(suffix) and path not in seen:
                self._check_name(path)
                yield path, _member_file(parts, member)

    def find(self, path: str) -> SourceFile | None:
        """The file at `path`, if there is one. A path that leaves the source is none."""
        if safe_path(path) != path:
            return None
        size = self._loose_size(path)
        if size is not None:
            return self._loose_file(path, size)
        return _member_file(*self._members[path]) if path in self._members else None

    def has(self, path: str) -> bool:
        """Whether there is a file or a folder at `path`."""
        path = path.strip("/")
        if not self._is_archive and self._exists(path):
            return True
        return path in self._members or path in self._folders

    def read(self, locator: str) -> bytes:
        """All bytes of a file. Raises ValueError if it is damaged, or larger than any image or list."""
        if not locator.startswith(MEMBER):
            return self._read_loose(locator)
        parts, member = Member.loads(locator.removeprefix(MEMBER))
        try:
            return read_member(
                _archive(self.url, parts), member, lambda: _inflated(self.url, parts)
            )
        except FileNotFoundError:  # not the sample alone
            raise OSError(f"{self.at(parts[0])} has gone") from None

    def ranges(self, locator: str) -> Ranges:
        """Random access to a file of any size."""
        if not locator.startswith(MEMBER):
            return _ranges(self.url, locator.removeprefix(LARGE))
        parts, member = Member.loads(locator.removeprefix(MEMBER))
        return open_member(_archive(self.url, parts), member, lambda: _inflated(self.url, parts))

    def open(self, locator: str) -> RangeFile:
        """A seekable file object, for libraries that want one."""
        return RangeFile(self.ranges(locator))

    def exists(self) -> bool:
        """Whether the source is still there: a missing file is a fault, a missing disk is not."""
        return Location(self.url).exists()

    def at(self, path: str) -> str:
        """`path` as people find it, for messages."""
        return f"{self.url.rstrip('/')}/{path}".rstrip("/")

    def describe(self, path: str = "") -> str:
        """What lies in the folder `path`, in a few words for an error message."""
        path = path.strip("/")
        if path and self.find(path) is not None:
            return "is not a folder"
        prefix = f"{path}/" if path else ""
        names = {
            m.removeprefix(prefix).split("/")[0] for m in self._members if m.startswith(prefix)
        }
        names |= set() if self._is_archive else set(self._location(path).list_names())
        unread = f" ({'; '.join(self._unread)})" if self._unread else ""
        if not names:
            return ("is empty" if self.has(path) else "does not exist") + unread
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        shown = ", ".join(sorted(names)[:SHOWN]).encode(errors="backslashreplace").decode()
        return f"holds {shown}{more}{unread}"

    @property
    def is_local(self) -> bool:
        return Location(self.url).is_local

    def _location(self, path: str) -> Location:
        return Location(self.url).child(*path.split("/")) if path else Location(self.url)

    def _exists(self, path: str) -> bool:
        if self.is_local:
            return os.path.exists(_local_path(self.url, path))
        return self._location(path).exists()

    def _loose_file(self, path: str, size: int) -> SourceFile:
        large = size > MOST_BYTES and not self.is_local
        return SourceFile(LARGE + path if large else path, size)

    def _read_loose(self, locator: str) -> bytes:
        path = locator.removeprefix(LARGE)
        if path == locator and not self.is_local:
            data = _below(self.url, path).read()
            _check_size(len(data))  # it may have grown since it was listed
            return data
        ranges = _ranges(self.url, path)
        _check_size(ranges.size)
        return ranges.read(0, ranges.size)

    def _loose_size(self, path: str) -> int | None:
        if self._is_archive:
            return None
        if self.is_local:
            local = _local_path(self.url, path)
            return os.path.getsize(local) if os.path.isfile(local) else None
        return self._location(path).file_size()

    @cached_property
    def _is_archive(self) -> bool:
        name = self.url.rstrip("/").rpartition("/")[2]
        return archive_name(name) is not None and Location(self.url).is_file()

    @property
    def _members(self) -> dict[str, tuple[Parts, Member]]:
        return self._overlay[0]

    @property
    def _unread(self) -> list[str]:
        return self._overlay[1]

    @cached_property
    def _overlay(self) -> tuple[dict[str, tuple[Parts, Member]], list[str]]:
        """Members of all archives, and why others are not among them."""
        members: dict[str, tuple[Parts, Member]] = {}
        unread = []
        ahead = LOCAL_AHEAD if self.is_local else REMOTE_AHEAD
        for name, parts in self._archives():
            contents = list_archive(self.at(name), _archive(self.url, parts), ahead)
            unread += [contents.unread] if contents.unread else []
            for path, member in contents.members.items():
                if not _hidden(path):
                    members.setdefault(path, (parts, member))
        unread += [f"{name} cannot be read in place: unpack it" for name in self._unreadable()]
        return members, unread

    @cached_property
    def _folders(self) -> set[str]:
        """That archives hold something in."""
        folders: set[str] = set()
        for path in self._members:
            while path and (path := path.rpartition("/")[0]) not in folders:
                folders.add(path)
        return folders

    def _archives(self) -> Iterator[tuple[str, Parts]]:
        """Name below the source and parts of each archive."""
        if self._is_archive:
            yield "", ("",)
            return
        parts: dict[str, list[str]] = {}
        for file in sorted(self._top):
            if (name := archive_name(file)) and not file.startswith("."):
                parts.setdefault(name, []).append(file)
        for name, files in parts.items():
            if name in files:
                yield name, (name,)
            else:
                check_parts(self.at(name), files)
                yield name, tuple(files)

    def _unreadable(self) -> Iterable[str]:
        return [name for name in self._top if UNREAD.fullmatch(name)]

    def _check_name(self, path: str) -> None:
        if not path.isascii() and path != path.encode(errors="replace").decode():
            raise UserError(f"the name of {self.at(path)!a} is not UTF-8: rename it.")
        if not self.is_local and ("?" in path or "::" in path):
            raise UserError(f"{self.at(path)!a}: no URL can name it: rename it.")

    @cached_property
    def _top(self) -> list[str]:
        return [] if self._is_archive else Location(self.url).list_names()

    def _loose(self, prefix: str) -> Iterator[tuple[str, int]]:
        if self._is_archive:
            return
        if self.is_local:
            yield from _walk(_local_path(self.url, prefix), prefix, ())
            return
        for name, size in self._location(prefix.rstrip("/")).file_sizes().items():
            if not _hidden(name):
                yield prefix + name, size


def _member_file(parts: Parts, member: Member) -> SourceFile:
    return SourceFile(MEMBER + member.dumps(parts), member.size)


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, more than {MOST_BYTES:,}")


def _hidden(path: str) -> bool:
    return path.startswith((".", "__MACOSX/")) or "/." in path


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Files below a local folder. Links are followed, but never in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, real))
            elif entry.is_file():
                yield f"{prefix}{entry.name}", entry.stat().st_size


class _LocalFile:
    """Reads by pread: no shared position."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._file).st_size

    def read(self, start: int, end: int) -> bytes:
        pieces = []
        while start < end and (piece := os.pread(self._file, min(end - start, 1 << 30), start)):
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


class _RemoteFile:
    def __init__(self, location: Location) -> None:
        self._location = location

    @cached_property
    def size(self) -> int:
        return self._location.size()

    def read(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        return self._location.read(start, end) if start < end else b""


@lru_cache(maxsize=OPEN_FILES)
def _location(url: str) -> Location:
    """Kept: to find out what a URL means takes as long as to read a small file."""
    return Location(url)


def _below(url: str, path: str) -> Location:
    return _location(url).child(*path.split("/")) if path else _location(url)


def _local_path(url: str, path: str) -> str:
    return os.path.join(_location(url).path, path) if path else _location(url).path


def _ranges(url: str, path: str) -> Ranges:
    if _location(url).is_local:
        return _LocalFile(_local_path(url, path))
    return _RemoteFile(_below(url, path))


def _archive(url: str, parts: Parts) -> Ranges:
    """Kept open by each process that reads it, until the files are others."""
    return _opened(url, parts, _versions(url, parts))


def _inflated(url: str, parts: Parts) -> Ranges:
    return _opened_inflated(url, parts, _versions(url, parts))


@lru_cache(maxsize=OPEN_FILES)
def _opened(url: str, parts: Parts, versions: Parts) -> Ranges:
    opened = [_ranges(url, part) for part in parts]
    return opened[0] if len(opened) == 1 else Joined(opened)


@lru_cache(maxsize=OPEN_FILES)
def _opened_inflated(url: str, parts: Parts, versions: Parts) -> Ranges:
    return Inflated(_opened(url, parts, versions), wbits=31)


def _versions(url: str, parts: Parts) -> Parts:
    """What changes when local files do. Of a store's, asking would take as long as reading."""
    if not _location(url).is_local:
        return ()
    found = [os.stat(_local_path(url, part)) for part in parts]
    return tuple(f"{s.st_ino} {s.st_mtime_ns} {s.st_size}" for s in found)


def require(source: Source, path: str, advice: str) -> SourceFile:
    """The file at `path`. Raises UserError naming it, with what is there instead."""
    found = source.find(path)
    if found is None:
        parent = path.rpartition("/")[0]
        raise UserError(
            f"{source.at(path)} is missing ({source.at(parent)} {source.describe(parent)}). {advice}"
        )
    return found


def find_root(source: Source, inside: Iterable[str], markers: Iterable[str], expected: str) -> str:
    """The first of the subfolders `inside` (`""`: `source` itself) that holds one of `markers`.

    Returned as a prefix of paths below `source`: `""` or `ECP/`. Raises UserError with `expected`.
    """
    for name in inside:
        prefix = f"{name}/" if name else ""
        if any(source.has(f"{prefix}{marker}") for marker in markers):
            return prefix
    raise UserError(f"{source.url} {source.describe()}; expected {expected}.")
