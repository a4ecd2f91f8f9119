"""Bytes of an image -> uint8 RGB; nothing is decoded before its header was checked."""

import re
import struct
from functools import partial

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""

MOST_PIXELS = 1 << 27
"""134 megapixels, 400 MB decoded: larger headers are taken for damage."""
MOST_HALVINGS = 3
"""What a JPEG's inverse DCT can do."""
JPEG_END = b"\xff\xd9"
LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
"""libjpeg's warning when the end marker does not follow the last block; it may count a few too little."""
MOST_PADDING = 8
"""Zero bytes that cameras put between the two. A damaged scan leaves coded bytes over, and seldom so few."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class DecodeError(ValueError):
    """The bytes are not an image that the pipeline reads; the message says why."""


def image_size(data: bytes, image_type: str) -> tuple[int, int]:
    """Height and width from the header. Raises DecodeError."""
    if image_type == "jpg":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise DecodeError(f"not a JPEG: {error}") from None
    elif image_type == "png":
        if data[:8] != PNG_SIGNATURE or data[12:16] != b"IHDR" or len(data) < 24:
            raise DecodeError("not a PNG")
        width, height = struct.unpack(">II", data[16:24])
    else:
        raise DecodeError(f"unknown image type {image_type!r}")
    if not 0 < height * width <= MOST_PIXELS:
        raise DecodeError(f"header of {width}x{height} pixels")
    return height, width


def decode(data: bytes, image_type: str, halvings: int = 0, fast_dct: bool = False) -> Pixels:
    """The image at 1/2^halvings of its size, rounded up, whole in every pixel. Raises DecodeError.

    Halvings (0 to 3) are done for JPEG by the inverse DCT; a PNG is decoded in full and halved.
    `fast_dct`: a tenth faster, and off by half a grey level or so.
    """
    height, width = image_size(data, image_type)
    scale = 1 << halvings
    if image_type == "jpg":
        return _decode_jpeg(data, -(-height // scale), -(-width // scale), fast_dct)
    coded = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.shape[:2] != (height, width):
        raise DecodeError("damaged PNG")
    if halvings:
        bottom, right = -height % scale, -width % scale
        padded = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        image = cv2.resize(padded, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    return image.astype(np.uint8, copy=False)


def _decode_jpeg(data: bytes, height: int, width: int, fast_dct: bool) -> Pixels:
    """Grey and CMYK become RGB."""
    read = partial(
        simplejpeg.decode_jpeg, data, "RGB", fast_dct, min_height=height, min_width=width
    )
    try:
        return read()
    except ValueError as error:
        if not _is_padding(data, str(error)):
            raise DecodeError(f"damaged JPEG: {error}") from None
    return read(strict=False)


def _is_padding(data: bytes, warning: str) -> bool:
    """Whether libjpeg warns of nothing but zeros before the end marker: every pixel was there."""
    left_over = LEFT_OVER.search(warning)
    if left_over is None or (count := int(left_over[1])) > MOST_PADDING:
        return False
    return data[: data.rfind(JPEG_END)].endswith(bytes(count))
