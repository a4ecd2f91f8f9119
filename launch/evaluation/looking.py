"""People in pictures of one's own: whoever is there, and how much they look like one of them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from pipeline.annotation import Box
from pipeline.errors import UserError
from pipeline.rendering.decode import Pixels
from training.evaluation.scenes import find_people, fit_scene
from training.evaluation.weights import Weights
from training.model.inference import Finder, Found, InferenceConfig

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SEARCH_SCORE = 0.5
SPEAK_EVERY = 50


@dataclass(frozen=True)
class Hit:
    """A person in a picture of the gallery."""

    file: Path
    box: Box
    score: float
    similarity: float


def list_pictures(folder: Path) -> list[Path]:
    """Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"--gallery {folder}: there is no such folder.")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise UserError(f"--gallery {folder}: no picture in it ({', '.join(SUFFIXES)}).")
    return files


def read_picture(file: Path) -> Pixels:
    """Turned as its EXIF says. Raises OSError or ValueError on what is no picture."""
    try:
        with Image.open(file) as image:
            return np.asarray(_eight_bit(ImageOps.exif_transpose(image)).convert("RGB"))
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """Of 16 bits of grey a pixel the upper ones: `convert` would cut all but the darkest to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def read_query(file: Path) -> Pixels:
    try:
        return read_picture(file)
    except (OSError, ValueError) as error:
        raise UserError(f"--query {file} is no picture that can be read: {error}") from None


class Looker:
    """Finds the people in a picture, and embeds one."""

    def __init__(self, weights: Weights, size: tuple[int, int]) -> None:
        self._finder = Finder(weights.model, InferenceConfig(min_score=SEARCH_SCORE))
        self._size = size

    def people(self, pixels: Pixels, asked: Sequence[Box] = ()) -> Found:
        boxes = np.array(asked, np.float64).reshape(-1, 4)
        (found,) = find_people(self._finder, [fit_scene(pixels, self._size, boxes)], 1)
        return found

    def choose(self, pixels: Pixels, box: Box | None, file: Path) -> tuple[Box, torch.Tensor]:
        """Whom to search and their embedding. Raises UserError if there is nobody."""
        if box is None:
            height, width = pixels.shape[:2]
            found = self.people(pixels)
            if not len(found.boxes):
                raise UserError(
                    f"nobody was found in {file}. Say where the person is, in its {width} x {height} pixels: "
                    f"--query {file}:x1,y1,x2,y2"
                )
            box = corners(found.boxes[0])
        return box, self.people(pixels, [box]).asked[0]


def look_through(
    looker: Looker, embedding: torch.Tensor, files: Sequence[Path], query: Path
) -> tuple[list[Hit], dict[Path, str]]:
    """Everybody in the gallery but in the query's own file, and the files that could not be read."""
    hits: list[Hit] = []
    problems: dict[Path, str] = {}
    for place, file in enumerate(files, 1):
        if file.resolve() == query.resolve():
            continue
        try:
            found = looker.people(read_picture(file))
        except (OSError, ValueError) as error:
            problems[file] = str(error)
            continue
        hits += _hits(file, found, embedding)
        if place % SPEAK_EVERY == 0:
            print(f"{place:,} of {len(files):,} pictures, {len(hits):,} people", flush=True)
    return hits, problems


def _hits(file: Path, found: Found, embedding: torch.Tensor) -> Iterator[Hit]:
    similarity = found.embeddings @ embedding * found.scores  # class-weighted, as in the benchmarks
    for box, score, similar in zip(found.boxes, found.scores.tolist(), similarity.tolist()):
        yield Hit(file, corners(box), score, similar)


def corners(box: torch.Tensor) -> Box:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


def shown(path: Path) -> str:
    """A name may hold bytes that are no text, which neither a page nor a console takes."""
    return os.fsencode(path).decode(errors="replace")


def in_words(box: Box) -> str:
    return ",".join(f"{side:.0f}" for side in box)
