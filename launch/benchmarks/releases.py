"""Generated releases for benchmarks, in native layouts: pictures of nature's spectrum, of photos' sizes.

The miniature's drawn pictures would not do: they compress too well, and coded bytes are what is measured.
"""

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from sharding.miniature.database import write_database

TEXTURE_SIDE = 2048
FALLOFF = 1.3
"""Of amplitude with frequency; with CONTRAST it makes 1280x720 pixels about 220 kB."""
CONTRAST = (17.0, 40.0)
"""Standard deviation of grey levels."""
QUALITY = 90
SCENE = (720, 1280)
CROP = (256, 128)
"""Height and width."""
PERSONS = 8
HUGE = (7200, 10800)
"""Of the largest image of CrowdHuman."""
HUGE_NAMES = ("baseline", "progressive", "progressive-444")
CROPS_PER_IDENTITY = 30
CITIES = 60 * 9
VALUE = bytes(60)
"""In place of a picture: planning asks for no more than its size."""


def pictures(count: int, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Windows of a texture, each in its own contrast and brightness. RGB."""
    rng, texture = np.random.default_rng(0), _texture()
    height, width = size
    for _ in range(count):
        y, x = (int(rng.integers(TEXTURE_SIDE - side + 1)) for side in size)
        window = texture[y : y + height, x : x + width][:: rng.choice((-1, 1))]
        grey = rng.uniform(90, 160) + rng.uniform(*CONTRAST) * window
        yield np.clip(grey, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _texture() -> NDArray[np.float32]:
    """Noise whose amplitude falls with frequency; the three channels are mostly alike."""
    rng = np.random.default_rng(0)
    frequencies = np.fft.fftfreq(TEXTURE_SIDE)[:, None], np.fft.rfftfreq(TEXTURE_SIDE)[None]
    amplitude = np.maximum(np.hypot(*frequencies), 1 / TEXTURE_SIDE) ** -FALLOFF
    noise = rng.standard_normal((4, 2, TEXTURE_SIDE, TEXTURE_SIDE // 2 + 1))
    waves = noise[:, 0] + 1j * noise[:, 1]
    channels = [np.fft.irfft2((waves[0] + 0.3 * wave) * amplitude) for wave in waves[1:]]
    return np.stack([channel / channel.std() for channel in channels], -1).astype(np.float32)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """As cameras code them: with half the colour's resolution."""
    return simplejpeg.encode_jpeg(image, QUALITY, colorsubsampling="420", fastdct=False)


def write_scenes(folder: Path, count: int, names: int = 1) -> None:
    """CrowdHuman's training split, of `count` pictures under so many names each."""
    rng = np.random.default_rng(0)
    images = folder / "Images"
    images.mkdir(parents=True)
    with open(folder / "annotation_train.odgt", "w") as annotations:
        for number, picture in enumerate(pictures(count, SCENE)):
            first = images / f"{number:06d},000000.jpg"
            first.write_bytes(jpeg(picture))
            for again in range(names):
                name = f"{number:06d},{again:06d}"
                if again:
                    os.link(first, images / f"{name}.jpg")
                people = [_person(rng) for _ in range(PERSONS)]
                annotations.write(json.dumps({"ID": name, "gtboxes": people}) + "\n")


def _person(rng: np.random.Generator) -> dict[str, object]:
    x, y, width = (int(rng.integers(*bounds)) for bounds in ((0, 1200), (0, 500), (20, 80)))
    return {
        "tag": "person",
        "hbox": [x + width // 3, y, width // 3, width // 3],
        "head_attr": {"ignore": 0, "occ": 0, "unsure": 0},
        "fbox": [x, y, width, 3 * width],
        "vbox": [x, y, width, 2 * width],
        "extra": {"box_id": int(rng.integers(20)), "occ": 1},
    }


def write_crops(folder: Path, count: int) -> None:
    """MSMT17's list_train, of `count` crops."""
    lines = []
    for number, picture in enumerate(pictures(count, CROP)):
        identity, index = divmod(number, CROPS_PER_IDENTITY)
        path = (
            f"{identity:04d}/{identity:04d}_{index:03d}_{index % 15 + 1:02d}_0303morning_0006_2.jpg"
        )
        (folder / f"train/{path}").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"train/{path}").write_bytes(jpeg(picture))
        lines.append(f"{path} {identity}\n")
    (folder / "list_train.txt").write_text("".join(lines))


def write_huge(folder: Path, size: tuple[int, int] = HUGE) -> None:
    """CrowdHuman's training split of three images as large as its largest, made of tiles: HUGE_NAMES.

    The last keeps its colour's full resolution.
    """
    (folder / "Images").mkdir(parents=True)
    tile = next(pictures(1, SCENE))
    repeats = (-(-side // tiled) for side, tiled in zip(size, SCENE, strict=True))
    picture = np.ascontiguousarray(np.tile(tile, (*repeats, 1))[: size[0], : size[1]])
    paths = [folder / f"Images/{name}.jpg" for name in HUGE_NAMES]
    paths[0].write_bytes(jpeg(picture))
    for path, sampling in zip(paths[1:], ("4:2:0", "4:4:4"), strict=True):
        Image.fromarray(picture).save(path, quality=QUALITY, subsampling=sampling, progressive=True)
    lines = (json.dumps({"ID": name, "gtboxes": []}) + "\n" for name in HUGE_NAMES)
    (folder / "annotation_train.odgt").write_text("".join(lines))


def write_many(folder: Path, count: int) -> None:
    """LUPerson of `count` records: the real one has 4.2 million."""
    in_city = -(-count // CITIES)
    names = []
    for number in range(count):
        place, image = divmod(number, in_city)
        country, city = divmod(place, 9)
        names.append(f"{country:02d}_{city:02d}_{image // 90:04d}_{number:08d}")
    write_database(folder, dict.fromkeys(names, VALUE), names)
