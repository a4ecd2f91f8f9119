"""Overlap of boxes, and of boxes with polygons. Boxes are xyxy, without a pixel more."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""(N, 4) xyxy."""


def iou(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Of arrays (..., 4) that broadcast. 0 where neither box has an area."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    union = area(first) + area(second) - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def area(boxes: Boxes) -> NDArray[np.float64]:
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1)


def polygon_iou(box: Sequence[float], polygon: NDArray[np.float64]) -> float:
    """Of a box with a simple polygon (V, 2), by clipping the polygon at the box's sides."""
    x1, y1, x2, y2 = box
    inside = polygon
    for axis, limit, sign in ((0, x1, 1.0), (1, y1, 1.0), (0, x2, -1.0), (1, y2, -1.0)):
        inside = _clip(inside, axis, limit, sign)
    shared = polygon_area(inside)
    union = polygon_area(polygon) + max(x2 - x1, 0) * max(y2 - y1, 0) - shared
    return shared / union if union > 0 else 0.0


def polygon_area(polygon: NDArray[np.float64]) -> float:
    """Of a simple polygon (V, 2), whichever way it turns."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _clip(
    polygon: NDArray[np.float64], axis: int, limit: float, sign: float
) -> NDArray[np.float64]:
    """The part of a polygon where sign * coordinate >= sign * limit (Sutherland and Hodgman)."""
    corners: list[NDArray[np.float64]] = []
    depth = sign * (polygon[:, axis] - limit)
    for here, there in zip(range(len(polygon)), np.roll(np.arange(len(polygon)), -1)):
        if depth[here] >= 0:
            corners.append(polygon[here])
        if (depth[here] >= 0) != (depth[there] >= 0):
            share = depth[here] / (depth[here] - depth[there])
            corners.append(polygon[here] + share * (polygon[there] - polygon[here]))
    return np.array(corners).reshape(-1, 2)
