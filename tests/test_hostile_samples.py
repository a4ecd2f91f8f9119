"""Odd and hostile samples through the writer: each is ok, and decodes, or has a plain reason."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from accounted import write_all
from fakes import FakeAdapter, jpeg
from packing import zeros
from PIL import Image
from releases import list_samples, write_file
from shardset import picture

from pipeline.annotation import Person
from pipeline.shards import OK
from sharding.datasets import ADAPTERS
from sharding.datasets.base import Adapter, Listing, SourceSample
from sharding.source import Source

SIZE = (40, 30)
"""Height and width of the pictures."""


def coded(mode: str, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(*SIZE, 1)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def grey_16() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(*SIZE, 1)[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(width: int, height: int, pixels: bytes, depth: int = 8, extra: bytes = b"") -> bytes:
    """RGB; `pixels` as coded in the IDAT chunk, `extra` chunks before it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return coded("RGB", "JPEG", exif=exif)


def jpeg_of_process(marker: int) -> bytes:
    """A baseline JPEG that calls itself arithmetic, lossless, hierarchical ..."""
    return coded("RGB", "JPEG").replace(b"\xff\xc0", bytes((0xFF, marker)), 1)


def jpeg_of_size(height: int, width: int) -> bytes:
    return coded("RGB", "JPEG").replace(
        struct.pack(">HH", *SIZE), struct.pack(">HH", height, width), 1
    )


def jpeg_of_scans(count: int) -> bytes:
    whole = coded("RGB", "JPEG", progressive=True)
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * count + whole[-2:]


def transparent_palette() -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(picture(*SIZE, 1)).quantize(16)
    image.save(buffer, "PNG", transparency=3)
    return buffer.getvalue()


JPEG = coded("RGB", "JPEG")
PNG = coded("RGB", "PNG")
ROW = zlib.compress(bytes(SIZE[0] * (1 + 3 * SIZE[1])))
GOOD = {
    "jpeg": JPEG,
    "progressive": coded("RGB", "JPEG", progressive=True),
    "restart markers": coded("RGB", "JPEG", restart_marker_blocks=2),
    "cmyk": coded("CMYK", "JPEG"),
    "grey jpeg": coded("L", "JPEG"),
    "subsampled": coded("RGB", "JPEG", subsampling=2),
    "exif rotated": exif_rotated(),
    "trailing garbage": JPEG + b"garbage" * 100,
    "png": PNG,
    "16 bit grey": grey_16(),
    "16 bit rgb": png(
        SIZE[1], SIZE[0], zlib.compress(bytes(SIZE[0] * (1 + 6 * SIZE[1]))), depth=16
    ),
    "grey png": coded("L", "PNG"),
    "one bit": coded("1", "PNG"),
    "palette": coded("P", "PNG"),
    "transparent palette": transparent_palette(),
    "alpha": coded("RGBA", "PNG"),
    "grey alpha": coded("LA", "PNG"),
    "profile that is a bomb": png(
        SIZE[1], SIZE[0], ROW, extra=chunk(b"iCCP", b"x\0\0" + zeros(1, 15))
    ),
    "text that is a bomb": png(
        SIZE[1], SIZE[0], ROW, extra=chunk(b"zTXt", b"x\0\0" + zeros(1, 15))
    ),
}
BAD = {
    "empty": (b"", "empty file"),
    "truncated jpeg": (JPEG[:-40], "truncated JPEG"),
    "truncated png": (PNG[:-40], "truncated PNG"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "truncated JPEG"),
    "cut scan": (JPEG[:-300] + JPEG[-2:], "damaged JPEG"),
    "flipped png": (PNG[:200] + b"?" + PNG[201:], "damaged PNG"),
    "too few rows": (png(SIZE[1], SIZE[0], zlib.compress(bytes(100))), "damaged PNG"),
    "a web page": (b"<!DOCTYPE html>", "neither JPEG nor PNG"),
    "gif": (b"GIF89a" + bytes(100), "neither JPEG nor PNG"),
    "another size": (jpeg(50, 30), "annotated as 30x40, is 30x50"),
    "no pixels": (png(0, 40, ROW), "header says 0x40 pixels"),
    "bomb png": (png(1 << 20, 1 << 20, ROW), "more than 80,000,000"),
    "bomb jpeg": (jpeg_of_size(65500, 65500), "more than 80,000,000"),
    "hours of scans": (jpeg_of_scans(5000), "more than 100 scans"),
    "no frame": (b"\xff\xd8\xff\xd9", "without a frame header"),
    "lossless": (jpeg_of_process(0xC3), "JPEG"),
    "hierarchical": (jpeg_of_process(0xC5), "JPEG"),
    "no tables": (JPEG[:2] + JPEG[JPEG.index(b"\xff\xc0") :], "damaged JPEG"),
}
ANY = {"arithmetic": jpeg_of_process(0xC9)}
"""What becomes of it depends on how the decoder was built."""


def scenes(images: dict[str, bytes], persons: tuple[Person, ...] = ()) -> FakeAdapter:
    samples = [
        SourceSample(
            f"fake/train/{number:04d}", name, f"{name}.jpg", len(data), persons, SIZE[::-1]
        )
        for number, (name, data) in enumerate(images.items())
    ]
    return FakeAdapter("detection", images, samples)


def written(
    adapter: Adapter, root: Path, listing: Listing, split: str, **settings: object
) -> dict[str, dict]:
    """The index's rows by origin."""
    out = root / f"out {adapter.name} {len(settings)}"
    rows = write_all(adapter, Source(str(root)), listing, split, out, **settings)
    return {row["origin"]: row for row in rows.values()}


def fake_rows(root: Path, adapter: FakeAdapter, **settings: object) -> dict[str, dict]:
    listing = Listing(adapter.samples, len(adapter.samples))
    return written(adapter, root, listing, "train", **settings)


@pytest.mark.parametrize("settings", [{}, {"keep_metadata": True}, {"recode": "jpeg:95"}])
def test_images(tmp_path: Path, settings: dict[str, object]) -> None:
    images = GOOD | {name: data for name, (data, _) in BAD.items()} | ANY
    rows = fake_rows(tmp_path, scenes(images), **settings)
    for name in GOOD:
        assert rows[f"{name}.jpg"]["status"] == OK, (name, rows[f"{name}.jpg"]["reason"])
    for name, (_, reason) in BAD.items():
        assert reason in (rows[f"{name}.jpg"]["reason"] or "it is ok"), name


def test_a_png_that_is_called_a_jpeg_is_stored_as_what_it_is(tmp_path: Path) -> None:
    rows = fake_rows(tmp_path, scenes({"x": PNG}))
    assert rows["x.jpg"]["image_type"] == "png"


def test_boxes_as_large_as_numbers_go(tmp_path: Path) -> None:
    huge = (Person(box=(-1e308, -1e308, 1e308, 1e308)), Person(box=(1e308, 0, 1.1e308, 1)))
    for settings in ({}, {"recode": "jpeg:90", "max_side": 64}):
        rows = fake_rows(tmp_path, scenes({"x": JPEG}, huge), **settings)
        assert rows["x.jpg"]["persons"] == 2


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_an_ecp_box_of_no_numbers_costs_one_frame(tmp_path: Path, number: str) -> None:
    for name, coordinate in (("a", "5"), ("b", number)):
        label = (
            '{"identity": "frame", "imagewidth": 30, "imageheight": 40, "children": [{"identity": '
            f'"pedestrian", "x0": 1, "y0": 2, "x1": {coordinate}, "y1": 9, "Orient": {coordinate}}}]}}'
        )
        write_file(tmp_path / f"day/labels/train/roma/roma_{name}.json", label)
        write_file(tmp_path / f"day/img/train/roma/roma_{name}.png", PNG)
    listing = list_samples("ecp", tmp_path, "day_train")
    rows = written(ADAPTERS["ecp"], tmp_path, listing, "day_train")
    assert rows["day/img/train/roma/roma_a.png"]["status"] == OK
    assert "not valid JSON" in rows["day/labels/train/roma/roma_b.json"]["reason"]


NAMES = (
    "two\nlines",
    "tab\tand\\back",
    "grüße, 北京 \U0001f6b6",
    "dots.in.the.name",
    "what?::colons",
    "n" * 240,
    " blanks ",
    "-",
)


def test_names_of_any_kind_become_keys_and_stay_origins(tmp_path: Path) -> None:
    frame = {
        "identity": "frame",
        "imagewidth": 30,
        "imageheight": 40,
        "tags": ["\n"],
        "children": [],
    }
    person = {"identity": "pedestrian", "x0": 1, "y0": 2, "x1": 20, "y1": 30, "children": []}
    records = []
    for name in NAMES:
        write_file(tmp_path / f"ecp/day/img/train/{'c' * 200}/{name}.png", PNG)
        label = json.dumps(frame | {"children": [person | {"tags": [name]}]})
        write_file(tmp_path / f"ecp/day/labels/train/{'c' * 200}/{name}.json", label)
        write_file(tmp_path / f"crowdhuman/Images/{name}.jpg", JPEG)
        box = {"tag": name, "fbox": [1, 2, 3, 4], "extra": {name: name}}
        records.append(json.dumps({"ID": name, "gtboxes": [box]}))
    write_file(tmp_path / "crowdhuman/annotation_train.odgt", "\n".join(records))
    for dataset, split, folder, suffix in (
        ("ecp", "day_train", f"day/img/train/{'c' * 200}", "png"),
        ("crowdhuman", "train", "Images", "jpg"),
    ):
        root = tmp_path / dataset
        listing = list_samples(dataset, root, split)
        assert len(listing.samples) == len(NAMES)
        rows = written(ADAPTERS[dataset], root, listing, split)
        assert rows.keys() == {f"{folder}/{name}.{suffix}" for name in NAMES}
        assert {row["status"] for row in rows.values()} == {OK}
