"""A source's coded image: what its header says, whether it decodes, and its bytes without metadata.

Nothing here raises on bad data: a `Fault` says in words why a sample cannot be used.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.decode import PNG_SIGNATURE, DecodeError, Pixels, decode

MAX_PIXELS = 80_000_000
"""Larger images are refused before decoding. CrowdHuman's largest has 10800 x 7200 = 77.8 million."""

Check = Literal["full", "header"]

PNG_KEPT = frozenset(
    (
        b"IHDR",
        b"PLTE",
        b"IDAT",
        b"IEND",
        b"tRNS",
        b"gAMA",
        b"cHRM",
        b"sRGB",
        b"iCCP",
        b"cICP",
        b"sBIT",
    )
)
"""Chunks that decide the pixels' values or colours; the rest is metadata, or an animation."""

JPEG_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The next marker behind coded data: neither a stuffed byte nor a restart marker nor a fill byte."""
SOF = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
SOS, EOI, COM, APP0, APP15 = 0xDA, 0xD9, 0xFE, 0xE0, 0xEF
JPEG_APP_KEPT = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
"""Application segments that decide the colours, by marker and first bytes; all others are metadata."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a sample cannot be used."""

    reason: str


@dataclass(frozen=True, slots=True)
class CodedImage:
    """A JPEG or PNG whose header has been read and found in order."""

    data: bytes
    """Without metadata unless it was to be kept."""
    type: Literal["jpg", "png"]
    width: int
    height: int

    def decode(self) -> Pixels | Fault:
        """RGB as stored: orientation tags are not applied, the boxes fit this grid.

        Uses the reader's own decoder, so that what passes here is what a training run can read.
        """
        try:
            return decode(self.data, self.type)
        except DecodeError as error:
            return Fault(str(error))


def open_image(data: bytes, keep_metadata: bool = False) -> CodedImage | Fault:
    """Reads the header and drops metadata; pixels are not decoded."""
    if not data:
        return Fault("empty file")
    try:
        if data.startswith(b"\xff\xd8"):
            image = _open_jpeg(data)
        elif data.startswith(PNG_SIGNATURE):
            image = _open_png(data)
        else:
            return Fault(f"neither JPEG nor PNG (starts with {data[:8].hex()})")
    except _Malformed as error:
        return Fault(str(error))
    if image.width * image.height == 0:
        return Fault(f"header says {image.width}x{image.height} pixels")
    if image.width * image.height > MAX_PIXELS:
        return Fault(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    return CodedImage(data, image.type, image.width, image.height) if keep_metadata else image


class _Malformed(Exception):
    """Structure of an image file broken; becomes a `Fault` at this module's border."""


def _open_jpeg(data: bytes) -> CodedImage:
    kept, size = [b"\xff\xd8"], None
    for marker, start, end in _jpeg_segments(data):
        if marker in SOF and size is None:
            if end - start < 10:
                raise _Malformed("JPEG frame header cut short")
            size = struct.unpack(">HH", data[start + 5 : start + 9])
        if _keep_jpeg_segment(marker, data[start + 4 : start + 16]):
            kept.append(data[start:end])
    if size is None:
        raise _Malformed("JPEG without a frame header")
    return CodedImage(b"".join(kept), "jpg", size[1], size[0])


def _keep_jpeg_segment(marker: int, head: bytes) -> bool:
    if marker == COM:
        return False
    if APP0 <= marker <= APP15:
        return marker in JPEG_APP_KEPT and head.startswith(JPEG_APP_KEPT[marker])
    return True


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to the end marker; a scan's coded data belongs to it."""
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if len(data) < at + 2:
            raise _Malformed("truncated JPEG")
        if data[at] != 0xFF:
            raise _Malformed("damaged JPEG: no marker where one must be")
        marker = data[at + 1]
        if marker == EOI:
            yield marker, at, at + 2
            return
        if len(data) < at + 4:
            raise _Malformed("truncated JPEG")
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(data):
            raise _Malformed("truncated JPEG")
        if marker == SOS:
            found = JPEG_NEXT_MARKER.search(data, end)
            if found is None:
                raise _Malformed("truncated JPEG")
            end = found.start()
        yield marker, at, end
        at = end


def _open_png(data: bytes) -> CodedImage:
    kept, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    size = None
    while True:
        if len(data) < at + 12:
            raise _Malformed("truncated PNG")
        length, name = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if end > len(data):
            raise _Malformed("truncated PNG")
        if name in PNG_KEPT:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise _Malformed(f"damaged PNG: checksum of {name.decode()} does not match")
            kept.append(data[at:end])
        if size is None:
            if name != b"IHDR" or length != 13:
                raise _Malformed("PNG without a header")
            size = struct.unpack(">II", data[at + 8 : at + 16])
        if name == b"IEND":
            return CodedImage(b"".join(kept), "png", size[0], size[1])
        at = end
