"""What the benchmarks do differently; what they have in common lies in `detection.py` and `search.py`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotation import Person
from pipeline.errors import UserError
from training.evaluation.overlap import Boxes, polygon_iou

PRW_CAMERA = re.compile(r"c(\d)s\d+_\d+$")


@dataclass(frozen=True)
class Benchmark:
    """How the evaluators that published numbers come from read a dataset."""

    read_boxes: Callable[[Boxes], Boxes]
    """Annotated boxes as they compare them with detections."""
    camera: Callable[[str], str] | None = None
    """Of a sample's key; None: a search across cameras is not defined."""
    ignore_iou: float | None = None
    """A detection that overlaps a region to ignore by more, and is no person, does not count."""

    def require_cameras(self) -> Callable[[str], str]:
        """`camera`. Raises UserError."""
        if self.camera is None:
            raise UserError(
                "a search across cameras is defined for PRW alone; leave --across-cameras out."
            )
        return self.camera


def as_annotated(boxes: Boxes) -> Boxes:
    return boxes


def whole_pixels(boxes: Boxes) -> Boxes:
    """Cut to whole pixels, wherever they leave the image."""
    return np.trunc(boxes)


def prw_boxes(boxes: Boxes) -> Boxes:
    """Corners left of or above the image move to its border, sizes stay, all is cut to whole pixels."""
    corner = np.maximum(boxes[:, :2], 0)
    return np.trunc(np.concatenate([corner, corner + boxes[:, 2:] - boxes[:, :2]], 1))


def prw_camera(key: str) -> str:
    """Raises UserError."""
    found = PRW_CAMERA.search(key)
    if found is None:
        raise UserError(
            f"the key {key!r} does not say which camera it is from; leave --across-cameras out."
        )
    return found[1]


BENCHMARKS = {
    "cuhk_sysu": Benchmark(as_annotated),
    "prw": Benchmark(prw_boxes, camera=prw_camera),
    "posetrack21": Benchmark(whole_pixels, ignore_iou=0.1),
}
"""By dataset; any other is read as annotated."""


def benchmark_of(dataset: str) -> Benchmark:
    return BENCHMARKS.get(dataset, Benchmark(as_annotated))


def are_in_regions(boxes: Boxes, regions: Sequence[Person], least_iou: float) -> NDArray[np.bool_]:
    """(N,) which detections overlap one of the regions by more than `least_iou`, which is above 0."""
    inside = np.zeros(len(boxes), bool)
    for outline in map(polygon, regions):
        low, high = outline.min(0, initial=np.inf), outline.max(0, initial=-np.inf)
        near = ((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(1) & ~inside
        inside[near] = [polygon_iou(box, outline) > least_iou for box in boxes[near]]
    return inside


def polygon(region: Person) -> NDArray[np.float64]:
    """(V, 2): as the source drew it, or the box."""
    x, y = region.extra.get("x"), region.extra.get("y")
    if isinstance(x, list) and isinstance(y, list):
        return np.array([x, y], np.float64).T
    x1, y1, x2, y2 = region.box
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)
