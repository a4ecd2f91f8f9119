"""Scenes as a model wants them at test time: of one scale, in batches of one size."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.annotation import FILL_RGB
from pipeline.rendering.decode import MOST_HALVINGS, Pixels, decode, image_size
from training.evaluation.overlap import Boxes
from training.model.inference import Finder, Found

SIDE_MULTIPLE = 32
"""Padded sides are multiples of it: few sizes, and strides divide them."""


@dataclass(frozen=True)
class Scene:
    """An image at the scale of the model."""

    pixels: Pixels
    scale: tuple[float, float]
    """Across and down: pixels of the model per pixel of the image."""
    asked: Boxes
    """(Q, 4) boxes to embed, in pixels of the image."""

    @property
    def padded(self) -> tuple[int, int]:
        height, width = (
            -(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in self.pixels.shape[:2]
        )
        return height, width


def fitted(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which an image just fits into `size`, short and long side, however it is turned."""
    scale = min(size[0] / min(height, width), size[1] / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def decode_scene(data: bytes, image_type: str, size: tuple[int, int], asked: Boxes) -> Scene:
    """Raises DecodeError."""
    height, width = image_size(data, image_type)
    target = fitted(height, width, size)
    halvings = min(MOST_HALVINGS, max(0, int(math.log2(height / target[0]))))
    return fit_scene(decode(data, image_type, halvings), size, asked, (height, width))


def fit_scene(
    pixels: Pixels, size: tuple[int, int], asked: Boxes, stored: tuple[int, int] | None = None
) -> Scene:
    """`stored`: height and width that boxes are given in, if not those of `pixels`."""
    height, width = stored or pixels.shape[:2]
    target = fitted(height, width, size)
    method = cv2.INTER_AREA if target[0] < pixels.shape[0] else cv2.INTER_LINEAR
    resized = cv2.resize(pixels, target[::-1], interpolation=method).astype(np.uint8, copy=False)
    inside = np.clip(asked, 0, [width, height, width, height])
    return Scene(resized, (target[1] / width, target[0] / height), inside)


def find_people(finder: Finder, scenes: Sequence[Scene], batch: int) -> list[Found]:
    """In each scene, with boxes in pixels of its image. Scenes of one padded size go `batch` at a time."""
    found: dict[int, Found] = {}
    for numbers in _batches(scenes, batch):
        some = [scenes[number] for number in numbers]
        pixels, size = _padded(some)
        scales = [torch.tensor([*scene.scale] * 2, dtype=torch.float32) for scene in some]
        asked = [torch.from_numpy(scene.asked).float() * s for scene, s in zip(some, scales)]
        for number, one, scale in zip(numbers, finder(pixels, size, asked), scales):
            found[number] = Found(one.boxes / scale, one.scores, one.embeddings, one.asked)
    return [found[number] for number in range(len(scenes))]


def _batches(scenes: Sequence[Scene], batch: int) -> Iterator[list[int]]:
    alike: dict[tuple[int, int], list[int]] = {}
    for number, scene in enumerate(scenes):
        alike.setdefault(scene.padded, []).append(number)
    for numbers in alike.values():
        yield from (numbers[start : start + batch] for start in range(0, len(numbers), batch))


def _padded(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Pixels of scenes of one padded size, and the height and width that are no padding."""
    pixels = np.empty((len(scenes), *scenes[0].padded, 3), np.uint8)
    pixels[:] = FILL_RGB
    for out, scene in zip(pixels, scenes):
        height, width = scene.pixels.shape[:2]
        out[:height, :width] = scene.pixels
    return torch.from_numpy(pixels), torch.tensor([scene.pixels.shape[:2] for scene in scenes])
