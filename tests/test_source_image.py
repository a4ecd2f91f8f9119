"""Coded images: header before pixels, faults as values, metadata out, pixels untouched."""

import io
import struct
import zlib

import numpy as np
import pytest
from fakes import jpeg
from PIL import Image, PngImagePlugin
from shardset import picture

from sharding.image import MAX_PIXELS, CodedImage, Fault, open_image

SECRET = b"N 52 31 E 13 24 planted"


def coded(mode: str, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 30, 1)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def opened(data: bytes, keep_metadata: bool = False) -> CodedImage:
    image = open_image(data, keep_metadata)
    assert isinstance(image, CodedImage), image
    return image


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_jpeg_metadata_goes_and_coded_pixels_stay(options: dict[str, object]) -> None:
    plain = coded("RGB", "JPEG", icc_profile=b"profile" * 9, **options)
    hidden = [
        segment(0xE1, b"Exif\0\0" + SECRET),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET),
        segment(0xED, b"Photoshop 3.0\0" + SECRET),
        segment(0xE2, b"MPF\0" + SECRET),
        segment(0xE0, b"JFXX\0" + SECRET),
        segment(0xFE, SECRET),
    ]
    end = plain.rindex(b"\xff\xd9")
    laden = plain[:2] + b"".join(hidden) + plain[2:end] + hidden[-1] + plain[end:] + SECRET
    image = opened(laden)
    assert image.data == plain
    assert (image.type, image.width, image.height) == ("jpg", 30, 40)
    assert opened(laden, keep_metadata=True).data == laden


def test_png_metadata_goes_and_coded_pixels_stay() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", SECRET.decode())
    text.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    plain = coded("RGB", "PNG")
    laden = coded("RGB", "PNG", pnginfo=text, exif=b"Exif\0\0" + SECRET) + SECRET
    assert SECRET in laden
    assert opened(laden).data == plain
    assert opened(plain).decode().tobytes() == picture(40, 30, 1).tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG")]
)
def test_what_becomes_rgb_is_accepted(mode: str, kind: str) -> None:
    pixels = opened(coded(mode, kind)).decode()
    assert isinstance(pixels, np.ndarray), pixels
    assert (pixels.shape, pixels.dtype) == ((40, 30, 3), np.uint8)
    wanted = np.asarray(Image.fromarray(picture(40, 30, 1)).convert(mode).convert("RGB"), int)
    assert np.abs(pixels - wanted).mean() < 4


def test_padding_behind_the_last_block_is_no_damage() -> None:
    whole = coded("RGB", "JPEG")
    pixels = opened(whole[:-2] + bytes(3) + whole[-2:]).decode()
    assert np.array_equal(pixels, opened(whole).decode())


def test_16_bits_become_8() -> None:
    grey = picture(40, 30, 1)[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 257).save(buffer, "PNG")
    pixels = opened(buffer.getvalue()).decode()
    assert np.array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))


def test_orientation_tag_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = coded("RGB", "JPEG", exif=exif)
    assert (opened(data).width, opened(data).height) == (30, 40)
    assert opened(data).decode().shape == (40, 30, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("keep", [0.0, 0.03, 0.3, 0.99])
def test_truncation_is_a_fault_without_decoding(kind: str, keep: float) -> None:
    whole = coded("RGB", kind)
    fault = open_image(whole[: int(len(whole) * keep)])
    assert isinstance(fault, Fault)
    assert fault.reason


def test_a_cut_scan_under_a_whole_structure_is_found_by_decoding() -> None:
    whole = coded("RGB", "JPEG")
    assert isinstance(opened(whole[: len(whole) - 200] + b"\xff\xd9").decode(), Fault)


def test_a_damaged_png_is_found_by_its_checksum() -> None:
    data = bytearray(coded("RGB", "PNG"))
    data[len(data) // 2] ^= 1
    assert "checksum" in open_image(bytes(data)).reason  # type: ignore[union-attr]


def test_a_bomb_is_refused_by_its_header() -> None:
    size = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert f"{MAX_PIXELS:,}" in open_image(bomb).reason  # type: ignore[union-attr]
    crowd = struct.pack(">HH", 7200, 10800)  # CrowdHuman's largest
    data = jpeg(40, 30)
    large = data.replace(struct.pack(">HH", 40, 30), crowd)
    assert (opened(large).width, opened(large).height) == (10800, 7200)


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(50), b"<html>", b"\xff\xd8\xff\xd9"])
def test_what_is_no_image_is_a_fault(data: bytes) -> None:
    assert isinstance(open_image(data), Fault)
