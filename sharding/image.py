"""A source's coded image: what its header says, whether it decodes, and its bytes without metadata.

Nothing here raises on bad data: a `Fault` says in words why a sample cannot be used.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.rendering.decode import MOST_HALVINGS, PNG_SIGNATURE, DecodeError, Pixels, decode

MAX_PIXELS = 80_000_000
"""Larger images are refused before decoding. CrowdHuman's largest has 10800 x 7200 = 77.8 million."""

MAX_CODED_BYTES = 256 << 20

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

JPEG_FILL = re.compile(rb"\xff{2,}")
"""Bytes that may stand before a marker, whose own first byte is the last of them."""
JPEG_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The next marker behind coded data: neither a stuffed byte nor a restart marker nor a fill byte."""
BLOCK = 1 << 16
"""Bytes that are searched at a time."""
SOF = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
MOST_SCANS = 100
"""Of a JPEG. Encoders make about ten; each goes over all pixels, and can be coded in a few bytes."""
PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
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
    coefficients: int = 0
    """Bytes that decoding holds at once besides the pixels: all of a progressive JPEG's."""

    def decode(self) -> Pixels | Fault:
        """RGB as stored: orientation tags are not applied, the boxes fit this grid.

        Uses the reader's own decoder, so that what passes here is what a training run can read.
        """
        return self._decode(0)

    def check(self) -> Fault | None:
        """What `decode` would find wrong. A JPEG's every coded bit is read, but few pixels are made of it."""
        checked = self._decode(self._check_halvings)
        return checked if isinstance(checked, Fault) else None

    def decode_bytes(self) -> int:
        """Memory that `decode` takes."""
        return self._pixel_bytes(0) + self.coefficients

    def check_bytes(self) -> int:
        """Memory that `check` takes."""
        return self._pixel_bytes(self._check_halvings) + self.coefficients

    @property
    def _check_halvings(self) -> int:
        return MOST_HALVINGS if self.type == "jpg" else 0

    def _pixel_bytes(self, halvings: int) -> int:
        copies = 1 if self.type == "jpg" else 2  # OpenCV converts what libpng gives
        return copies * 3 * (self.width >> halvings) * (self.height >> halvings)

    def _decode(self, halvings: int) -> Pixels | Fault:
        try:
            return decode(self.data, self.type, halvings)
        except DecodeError as error:
            return Fault(str(error))


def open_image(data: bytes, keep_metadata: bool = False) -> CodedImage | Fault:
    """Reads the header and drops metadata; pixels are not decoded."""
    if not data:
        return Fault("empty file")
    if len(data) > MAX_CODED_BYTES:
        return Fault(f"{len(data):,} bytes, more than {MAX_CODED_BYTES:,}")
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
    return replace(image, data=data) if keep_metadata else image


class _Malformed(Exception):
    """Structure of an image file broken; becomes a `Fault` at this module's border."""


def _open_jpeg(data: bytes) -> CodedImage:
    kept, size, coefficients, scans = [(0, 2)], None, 0, 0
    for marker, start, end in _jpeg_segments(data):
        scans += marker == SOS
        if scans > MOST_SCANS:
            raise _Malformed(f"JPEG of more than {MOST_SCANS} scans")
        if marker in SOF and size is None:
            if end - start < 10:
                raise _Malformed("JPEG frame header cut short")
            size = struct.unpack(">HH", data[start + 5 : start + 9])
            if marker in PROGRESSIVE:
                coefficients = _coefficient_bytes(data[start + 5 : end])
        if _keep_jpeg_segment(marker, data[start + 4 : start + 16]):
            kept.append((start, end))
    if size is None:
        raise _Malformed("JPEG without a frame header")
    return CodedImage(_only(data, kept), "jpg", size[1], size[0], coefficients)


def _coefficient_bytes(frame: bytes) -> int:
    """Of all components of a frame header (from its height on): two bytes each."""
    height, width, count = struct.unpack(">HHB", frame[:5])
    factors = [(byte >> 4) * (byte & 15) for byte in frame[6 : 6 + 3 * count : 3]]
    return 2 * int(height) * int(width) * sum(factors) // max([1, *factors])


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
        if filling := JPEG_FILL.match(data, at):
            at = filling.end() - 1
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
            end = _next_marker(data, end)
        yield marker, at, end
        at = end


def _next_marker(data: bytes, at: int) -> int:
    """Where the next marker behind coded data begins.

    NumPy leads to the first byte that may be one, in a third of the time that the pattern would take.
    """
    for start in range(at, len(data), BLOCK):
        block = np.frombuffer(data, np.uint8, min(BLOCK + 1, len(data) - start), start)
        suspects = (block[:-1] == 0xFF) & (block[1:] != 0)
        if suspects.any():
            found = JPEG_NEXT_MARKER.search(data, start + int(suspects.argmax()))
            if found is not None:
                return found.start()
            break
    raise _Malformed("truncated JPEG")


def _open_png(data: bytes) -> CodedImage:
    at = len(PNG_SIGNATURE)
    kept = [(0, at)]
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
            kept.append((at, end))
        if size is None:
            if name != b"IHDR" or length != 13:
                raise _Malformed("PNG without a header")
            size = struct.unpack(">II", data[at + 8 : at + 16])
        if name == b"IEND":
            return CodedImage(_only(data, kept), "png", size[0], size[1])
        at = end


def _only(data: bytes, spans: list[tuple[int, int]]) -> bytes:
    """The bytes of `spans`, which are in order: `data` itself, not copied, if they are all of it."""
    if sum(end - start for start, end in spans) == len(data):
        return data
    view = memoryview(data)
    return b"".join(view[start:end] for start, end in spans)
