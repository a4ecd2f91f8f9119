"""Cut-outs around a person, all of one shape, with the box drawn over."""

import cv2
import numpy as np
import simplejpeg

from pipeline.annotation import FILL_RGB, Box
from pipeline.pages.page import Mark, MarkKind, Picture
from pipeline.rendering.decode import Pixels

CONTEXT = 1.5
"""Height of a cut-out over that of the person."""
ASPECT = 0.75
"""Width over height."""
HEIGHT_PX = 260
SMALLEST_PX = 40
"""Of the image, so that a tiny person is seen with where it stands."""


def crop_picture(pixels: Pixels, box: Box, kind: MarkKind, label: str, caption: str) -> Picture:
    """`box` in `pixels`, marked as `kind`; what lies outside of the image is filled."""
    x1, y1, x2, y2 = box
    height = max((y2 - y1) * CONTEXT, (x2 - x1) * CONTEXT / ASPECT, SMALLEST_PX)
    width = height * ASPECT
    left, top = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
    scale = HEIGHT_PX / height
    size = (round(width * scale), HEIGHT_PX)
    moved = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    shown = cv2.warpAffine(
        pixels, moved, size, flags=method, borderMode=cv2.BORDER_CONSTANT, borderValue=FILL_RGB
    )
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(shown), 85, "RGB", "420")
    inside = tuple((side - start) * scale for side, start in zip(box, (left, top, left, top)))
    return Picture(jpeg, *size, (Mark(inside, kind, label),), caption)  # type: ignore[arg-type]
