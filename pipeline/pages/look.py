"""Batches as the trainer gets them, taken apart for people to look at: every image, every person.

`pipeline.pages.look_page` draws what is gathered here.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import cv2
import numpy as np
import simplejpeg

from pipeline.annotation import Box
from pipeline.batch import Batch, Images, Use, View
from pipeline.rendering.geometry import Size
from pipeline.rendering.renderer import TaskName
from pipeline.stream import Stream

MOST_PAGE_BYTES = 20_000_000
MOST_VIEW_SIDE = 960
"""Pixels; larger views are shown smaller."""
JPEG_QUALITY = 87
MOST_PERSONS = 200
"""Of an image, that are drawn."""
MARKUP_BYTES = 1000
"""What an image takes on a page besides its pictures, and what each of its persons takes; at most."""


class Fate(Enum):
    """What becomes of a person in the losses, by its `Use` in its views and by whether it is labelled."""

    CONTRAST = "L_con pair"
    IDENTITY = "identity in both views"
    SINGLE = "match in one view"
    DETECT = "detection only"
    IGNORE = "ignored"
    ABSENT = "in no view"


@dataclass(frozen=True)
class ShownPerson:
    number: int
    """In its image, as annotated."""
    row: int
    """Of the look-up table, -1 where unlabelled."""
    identity: str
    """Empty where unlabelled."""
    uses: tuple[Use, ...]
    """In each view."""
    boxes: tuple[Box, ...]
    """In pixels of the views."""

    @property
    def is_pair(self) -> bool:
        """MATCH in both of two views."""
        return self.uses == (Use.MATCH, Use.MATCH)

    @property
    def fate(self) -> Fate:
        if self.is_pair:
            return Fate.CONTRAST if self.row < 0 else Fate.IDENTITY
        best = max(self.uses)
        fates = {Use.MATCH: Fate.SINGLE, Use.DETECT: Fate.DETECT, Use.IGNORE: Fate.IGNORE}
        return fates.get(best, Fate.ABSENT)


@dataclass(frozen=True)
class ShownImage:
    task: TaskName
    step: int
    position: int
    key: str
    source: str
    """The entry of the mixture that it came from."""
    domain: str
    epoch: int
    variants: tuple[int, int]
    size: Size
    """Of the views."""
    valid: tuple[Size, ...]
    persons: tuple[ShownPerson, ...]
    views: tuple[bytes, ...] | None
    """JPEGs, or None of an image that is not shown."""


@dataclass
class Gallery:
    """The images of some batches; only the first few of each step carry their pictures."""

    stream: Stream
    images_per_step: int
    """Of each task, that are shown."""
    images: list[ShownImage] = field(default_factory=list)
    elapsed_s: float = 0.0
    page_bytes: int = 0

    def gather(self, first_step: int, steps: int) -> None:
        """Raises UserError on what stops a trainer too."""
        began = time.perf_counter()
        with self.stream.batches(first_step, first_step + steps) as batches:
            for batch in batches:
                self.add(batch)
        self.elapsed_s += time.perf_counter() - began

    def add(self, batch: Batch) -> None:
        done = batch.to("cpu")  # where views are finished on a device, they are only now
        for task, images in (("detection", done.scenes), ("reid", done.canvases)):
            if images is not None:
                self.images += self._images(task, done.step, images)  # type: ignore[arg-type]

    def _images(self, task: TaskName, step: int, images: Images) -> Iterator[ShownImage]:
        stream = self.stream.tasks[task]
        persons = self._persons(images)
        for number, (key, position) in enumerate(
            zip(images.keys, images.position.tolist(), strict=True)
        ):
            place = stream.place(position, key)
            yield ShownImage(
                task=task,
                step=step,
                position=position,
                key=key,
                source=stream.readers[place.source].source_name,
                domain=stream.domains[int(images.domain[number])],
                epoch=place.epoch,
                variants=stream.variants(place),
                size=stream.size,
                valid=tuple(Size(*view.valid[number].tolist()) for view in images.views),
                persons=tuple(persons[number]),
                views=self._pictures(images, number, len(persons[number])),
            )

    def _persons(self, images: Images) -> list[list[ShownPerson]]:
        """Of every image."""
        found: list[list[ShownPerson]] = [[] for _ in images.keys]
        for row, image in enumerate(images.image.tolist()):
            identity = int(images.identity[row])
            found[image].append(
                ShownPerson(
                    number=int(images.person[row]),
                    row=identity,
                    identity=self.stream.identities.pairs[identity][1] if identity >= 0 else "",
                    uses=tuple(Use(int(view.use[row])) for view in images.views),
                    boxes=tuple(_box(view, row) for view in images.views),
                )
            )
        return found

    def _pictures(self, images: Images, number: int, persons: int) -> tuple[bytes, ...] | None:
        if number >= self.images_per_step or self.page_bytes >= MOST_PAGE_BYTES:
            return None
        pictures = tuple(_jpeg(view.pixels[number].numpy()) for view in images.views)
        markup = MARKUP_BYTES * (1 + min(persons, MOST_PERSONS))
        self.page_bytes += sum(map(len, pictures)) * 4 // 3 + markup
        return pictures


def _box(view: View, row: int) -> Box:
    x1, y1, x2, y2 = view.boxes[row].tolist()
    return x1, y1, x2, y2


def _jpeg(pixels: np.ndarray) -> bytes:
    shrink = MOST_VIEW_SIDE / max(pixels.shape)
    if shrink < 1:
        pixels = cv2.resize(pixels, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), JPEG_QUALITY, "RGB", "444")
