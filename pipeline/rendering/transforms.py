"""Transforms of your own: a function here and a line in the table, and `views.transform` names it.

A transform gets the content of a view, without its padding, after colour and blur and before erasing,
and returns content of the same size: boxes stay where they are, so it must not move anything. All that
is random in it comes from `draws`, or a resumed run would see other pixels. It runs in the stream's
threads; one that holds the interpreter lock wants worker processes.
"""

from collections.abc import Callable

import numpy as np
import simplejpeg

from pipeline.errors import UserError
from pipeline.keyed import Draws
from pipeline.rendering.decode import Pixels

Transform = Callable[[Pixels, Draws], Pixels]
"""(H, W, 3) uint8 RGB in contiguous rows -> the same; it may write into what it gets."""


def recompress(content: Pixels, draws: Draws) -> Pixels:
    """JPEG of quality 30 to 95, as surveillance footage comes."""
    quality = 30 + draws.index(66)
    coded = simplejpeg.encode_jpeg(np.ascontiguousarray(content), quality, colorsubsampling="420")
    return simplejpeg.decode_jpeg(coded)


TRANSFORMS: dict[str, Transform] = {
    "recompress": recompress,
}


def transform(name: str, content: Pixels, draws: Draws) -> None:
    """Applies a transform of the table in place. Raises UserError on a result that is no such content."""
    result = TRANSFORMS[name](content, draws)
    if not isinstance(result, np.ndarray):
        returned = type(result).__name__
    elif result.shape != content.shape or result.dtype != np.uint8:
        returned = f"{result.dtype} of shape {result.shape}"
    else:
        np.copyto(content, result)
        return
    raise UserError(
        f"the transform `{name}` returned {returned} for a view of shape {content.shape}. It must return "
        "a uint8 array of the same shape: see pipeline/rendering/transforms.py."
    )
