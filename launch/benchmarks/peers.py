"""What the sharding job is held against: another writer, another image library, and bare coding."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import webdataset
from PIL import Image

from pipeline.annotation import FILL_RGB
from pipeline.rendering.decode import Pixels
from sharding.canvas import CanvasConfig, place_crop


@dataclass(frozen=True)
class Scene:
    key: str
    path: Path
    record: dict[str, Any]
    """What its annotation says."""


@dataclass(frozen=True)
class Crop:
    key: str
    path: Path
    boxes: tuple[tuple[int, int, int, int], ...]
    """Where it lies on each of its canvases: left, top, right, bottom."""


def place(key: str, path: Path, config: CanvasConfig, seed: int) -> Crop:
    """A crop with the places that the sharding job gives it."""
    pixels = simplejpeg.decode_jpeg(path.read_bytes(), "RGB")
    placed = [place_crop(pixels, config, seed, key, n).box for n in range(config.variants)]
    boxes = [(int(x), int(y), int(x2), int(y2)) for x, y, x2, y2 in placed]
    return Crop(key, path, tuple(boxes))


def write_tar(scenes: Sequence[Scene], out: Path) -> int:
    """By webdataset's TarWriter: no hash, no index, no fsync, no rename."""
    out.mkdir()
    with webdataset.TarWriter(str(out / "scenes.tar")) as tar:
        for scene in scenes:
            jpeg = scene.path.read_bytes()
            tar.write({"__key__": scene.key, "jpg": jpeg, "json": scene.record})
    return len(scenes)


def write_hashed_tar(scenes: Sequence[Scene], out: Path) -> int:
    """The same with sha256 of each image and of the tar, as anybody would add them."""
    out.mkdir()
    with _HashedFile(out / "scenes.tar") as file, webdataset.TarWriter(file) as tar:
        for scene in scenes:
            jpeg = scene.path.read_bytes()
            hashlib.sha256(jpeg).hexdigest()
            tar.write({"__key__": scene.key, "jpg": jpeg, "json": scene.record})
    return len(scenes)


class _HashedFile(io.FileIO):
    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


def decode_all(scenes: Sequence[Scene]) -> int:
    """The floor of a full check."""
    for scene in scenes:
        simplejpeg.decode_jpeg(scene.path.read_bytes(), "RGB")
    return len(scenes)


def paste_by_pillow(crops: Sequence[Crop], config: CanvasConfig) -> int:
    """The crop alone is resized, then pasted."""
    height, width = config.size
    for crop in crops:
        image = _open(crop)
        for box in crop.boxes:
            canvas = Image.new("RGB", (width, height), FILL_RGB)
            placed = image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR)
            canvas.paste(placed, box[:2])
            _encode(canvas, config)
    return len(crops) * config.variants


def expand_by_pillow(crops: Sequence[Crop], config: CanvasConfig) -> int:
    """The paper's words in their order: paste on a canvas of so many times the crop, resize that."""
    height, width = config.size
    for crop in crops:
        image = _open(crop)
        for left, top, right, bottom in crop.boxes:
            x, y = image.width / (right - left), image.height / (bottom - top)
            canvas = Image.new("RGB", (round(width * x), round(height * y)), FILL_RGB)
            canvas.paste(image, (round(left * x), round(top * y)))
            _encode(canvas.resize((width, height), Image.Resampling.BILINEAR), config)
    return len(crops) * config.variants


def _open(crop: Crop) -> Image.Image:
    with Image.open(crop.path) as image:
        return image.convert("RGB")


def _encode(canvas: Image.Image, config: CanvasConfig) -> None:
    """As the sharding job does."""
    subsampling = ":".join(config.subsampling)
    canvas.save(io.BytesIO(), "JPEG", quality=config.quality, subsampling=subsampling)


class CodingFloor:
    """Each crop decoded once and each canvas encoded once, with nothing between."""

    def __init__(self, crops: Sequence[Crop], config: CanvasConfig) -> None:
        self._config = config
        self._coded = [crop.path.read_bytes() for crop in crops]
        self._canvases = [canvas for crop in crops for canvas in _draw(crop, config)]

    def run(self) -> int:
        for data in self._coded:
            simplejpeg.decode_jpeg(data, "RGB")
        for canvas in self._canvases:
            simplejpeg.encode_jpeg(
                canvas, self._config.quality, "RGB", self._config.subsampling, fastdct=False
            )
        return len(self._canvases)


def _draw(crop: Crop, config: CanvasConfig) -> list[Pixels]:
    image, canvases = _open(crop), []
    for box in crop.boxes:
        canvas = Image.new("RGB", (config.size[1], config.size[0]), FILL_RGB)
        canvas.paste(image.resize((box[2] - box[0], box[3] - box[1])), box[:2])
        canvases.append(np.array(canvas))
    return canvases
