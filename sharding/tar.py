"""A deterministic tar: POSIX ustar, plain members in the order given, no owner, no time."""

import hashlib
from typing import Any

from pipeline.stores.store import Location

BLOCK = 512
MAX_NAME, MAX_PREFIX = 100, 155


class TarWriter:
    """Writes a file that `publish` puts in place whole. Left unpublished, it vanishes."""

    def __init__(self, location: Location) -> None:
        self._replacement = location.replacement()
        self._digest = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> "TarWriter":
        self._new = self._replacement.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._replacement.__exit__(*error)

    def add(self, name: str, data: bytes) -> int:
        """Appends a member; returns the offset of its bytes."""
        self._write(ustar_header(name, len(data)))
        offset = self.size
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return offset

    def publish(self) -> None:
        self._write(bytes(2 * BLOCK))
        self._new.publish()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._new.file.write(data)
        self._digest.update(data)
        self.size += len(data)


def ustar_header(name: str, size: int) -> bytes:
    """One block. Names over 100 bytes are split at a slash, as the format demands."""
    prefix, stem = _split_name(name.encode("ascii"))
    fields = [
        stem.ljust(MAX_NAME, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0" * 2,  # owner, group
        b"%011o\0" % size,
        b"00000000000\0",  # time
        b" " * 8,  # checksum, counted as blanks
        b"0",  # a plain file
        bytes(100),  # no link
        b"ustar\x0000",
        bytes(64),  # no owner's or group's name
        b"0000000\0" * 2,  # device
        prefix.ljust(MAX_PREFIX, b"\0"),
        bytes(12),
    ]
    header = b"".join(fields)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _split_name(name: bytes) -> tuple[bytes, bytes]:
    if len(name) <= MAX_NAME:
        return b"", name
    slash = name.find(b"/", len(name) - MAX_NAME - 1)
    if not 0 < slash <= MAX_PREFIX:
        raise ValueError(f"{name!r} does not fit into a tar header")
    return name[:slash], name[slash + 1 :]
