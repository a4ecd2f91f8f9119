"""What a model found in the images of a benchmark, as arrays over all images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from training.evaluation.overlap import Boxes


@dataclass(frozen=True)
class Grouped:
    """Boxes of many images: those of image i are the rows first[i] to first[i + 1]."""

    first: NDArray[np.int64]
    """(I + 1,)"""
    boxes: Boxes
    """(N, 4) in pixels of the image as stored."""

    def rows(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of all boxes of these images, in their order; an image named twice gives its rows twice."""
        count = self.count(images)
        start = np.repeat(self.first[images] - (count.cumsum() - count), count)
        return (start + np.arange(len(start))).astype(np.int64)

    def count(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.first[images + 1] - self.first[images]

    def image(self) -> NDArray[np.int64]:
        """(N,) the image of each row."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    @classmethod
    def of(cls, boxes: Sequence[Boxes]) -> "Grouped":
        """From the boxes of each image."""
        return cls(starts([len(one) for one in boxes]), joined(boxes, 4))


@dataclass(frozen=True)
class Scored(Grouped):
    """Detections. Of an image, the most confident first."""

    scores: NDArray[np.float32]
    """(N,)"""

    def where(self, kept: NDArray[np.bool_]) -> Self:
        if kept.all():
            return self
        names = [field.name for field in fields(self) if field.name != "first"]
        rows = {name: getattr(self, name)[kept] for name in names}
        return replace(self, first=starts(kept)[self.first], **rows)

    def with_empty(self, images: int) -> Self:
        """With so many images more, in which nothing is found."""
        return replace(self, first=np.append(self.first, np.full(images, self.first[-1])))


@dataclass(frozen=True)
class Detections(Scored):
    """That can be searched."""

    embeddings: NDArray[np.float32]
    """(N, D) of length 1"""


def starts(counts: Sequence[int] | NDArray) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def joined(parts: Sequence[NDArray], width: int) -> NDArray[np.float64]:
    return np.concatenate([np.zeros((0, width)), *(np.reshape(p, (-1, width)) for p in parts)])
