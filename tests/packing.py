"""Folders packed as releases come: every kind of archive that is read in place."""

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from releases import write_file

Files = Mapping[str, bytes]


def files_of(folder: Path, under: str = "") -> dict[str, bytes]:
    """Path below `folder` -> bytes, of the files below `folder/under`."""
    paths = sorted(path for path in (folder / under).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def unpacked(target: Path, files: Files) -> None:
    for name, data in files.items():
        write_file(target / name, data)


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Files) -> bytes:
    return tarred_members((member(name, data), data) for name, data in files.items())


def member(name: str, data: bytes = b"", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tarred_members(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def in_streams(data: bytes, count: int) -> bytes:
    """Gzip streams one after the other, as parallel compressors write them, and zeros at the end."""
    step = len(data) // count + 1
    return b"".join(gzip.compress(data[i : i + step], 1) for i in range(0, len(data), step)) + b"\0"


def cut(name: str, data: bytes, endings: Iterable[str]) -> dict[str, bytes]:
    """The pieces of a split archive, of unequal sizes."""
    endings = list(endings)
    bounds = [len(data) * i * i // len(endings) ** 2 for i in range(len(endings) + 1)]
    return {f"{name}.{ending}": data[bounds[i] : bounds[i + 1]] for i, ending in enumerate(endings)}


def zeros(gigabytes: int, wbits: int) -> bytes:
    """So many zeros deflated, without compressing them all: the same block again and again."""
    coder = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = coder.compress(bytes(1 << 20)) + coder.flush(zlib.Z_FULL_FLUSH)
    again = coder.compress(bytes(1 << 20)) + coder.flush(zlib.Z_FULL_FLUSH)
    return first + again * (1024 * gigabytes - 1) + coder.flush()


def _in_two(root: Path, files: Files) -> None:
    names = sorted(files)
    write_file(root / "a.zip", zipped({name: files[name] for name in names[::2]}))
    write_file(root / "b.tar", tarred({name: files[name] for name in names[1::2]}))


def _in_parts(root: Path, archive: str, data: bytes, *endings: str) -> None:
    unpacked(root, cut(archive, data, endings))


KINDS: dict[str, Callable[[Path, Files], None]] = {
    "folder": unpacked,
    "zip": lambda root, files: write_file(root / "a.zip", zipped(files)),
    "stored zip": lambda root, files: write_file(root / "a.zip", zipped(files, zipfile.ZIP_STORED)),
    "tar": lambda root, files: write_file(root / "a.tar", tarred(files)),
    "tar.gz": lambda root, files: write_file(root / "a.tar.gz", gzip.compress(tarred(files), 1)),
    "tgz in streams": lambda root, files: write_file(root / "a.tgz", in_streams(tarred(files), 7)),
    "parts of a tar": lambda root, files: _in_parts(root, "a.tar", tarred(files), "aa", "ab", "ac"),
    "parts of a zip": lambda root, files: _in_parts(root, "a.zip", zipped(files), "001", "002"),
    "two archives": _in_two,
}
"""How a folder's files can lie in another folder and be read as if unpacked there."""
