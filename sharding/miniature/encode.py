"""Pictures to coded bytes to files, and what damage looks like."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """`image` is RGB."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def png(image: NDArray[np.uint8]) -> bytes:
    """`image` is RGB."""
    # Noise has no repeats to find: Huffman alone is as small as level 6 and five times as fast.
    options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    _, data = cv2.imencode(".png", image[..., ::-1], options)
    return data.tobytes()


def truncated(data: bytes) -> bytes:
    """What an interrupted download leaves."""
    return data[: len(data) * 11 // 20]


def with_orientation(data: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF block that asks viewers to turn it (6: a quarter to the right)."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + orientation.to_bytes(2, "big") + b"\x00\x00"
    block = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    return data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]


def damaged(rng: np.random.Generator, total: int, count: int) -> frozenset[int]:
    """Which of `total` files are truncated; at least one file stays whole."""
    return frozenset(rng.permutation(total)[: min(count, total - 1)].tolist())


def put(path: Path, data: bytes) -> None:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
