"""JPEGs with damaged scans: whatever libjpeg notices is a fault, however small the warning sounds."""

from collections import Counter

import numpy as np
import pytest
import simplejpeg
from shardset import picture

from pipeline.rendering.decode import MOST_PADDING, DecodeError, decode

FLIPS = 300
WRONG = 32
"""Levels by which a channel must be off to be seen."""
UNDAMAGED = 0.02
"""Share of a picture's pixels that may be wrong: that of a block."""


def flip_a_bit_of_the_scan(whole: bytes, draws: np.random.Generator) -> bytes:
    header = whole.index(b"\xff\xda") + 2
    start = header + int.from_bytes(whole[header : header + 2], "big")
    flipped = bytearray(whole)
    flipped[draws.integers(start, len(whole) - 2)] ^= 1 << draws.integers(8)
    return bytes(flipped)


def is_damaged(data: bytes, whole: bytes) -> bool:
    got, wanted = (
        simplejpeg.decode_jpeg(d, "RGB", strict=False).astype(int) for d in (data, whole)
    )
    return bool((np.abs(got - wanted).max(-1) > WRONG).mean() > UNDAMAGED)


def outcome(data: bytes) -> str:
    """`fault`, or how a picture that `decode` takes fared with libjpeg: `warned` | `silent`."""
    try:
        decode(data, "jpg")
    except DecodeError:
        return "fault"
    try:
        simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return "warned"
    return "silent"


def test_no_picture_that_libjpeg_finds_damaged_passes() -> None:
    """Flips in one picture of 96 x 128 each; what nobody can notice without a checksum is counted too."""
    draws = np.random.default_rng(0)
    damaged: Counter[str] = Counter()
    for seed in range(FLIPS):
        whole = simplejpeg.encode_jpeg(picture(96, 128, seed), 90)
        data = flip_a_bit_of_the_scan(whole, draws)
        if is_damaged(data, whole):
            damaged[outcome(data)] += 1
    assert damaged["warned"] == 0
    assert damaged["fault"] > 0.4 * damaged.total() > 0.1 * FLIPS


@pytest.mark.parametrize("count", [1, MOST_PADDING])
def test_zeros_before_the_end_marker_are_padding(count: int) -> None:
    whole = simplejpeg.encode_jpeg(picture(96, 128, 0), 90)
    padded = whole[:-2] + bytes(count) + whole[-2:]
    assert np.array_equal(decode(padded, "jpg"), decode(whole, "jpg"))
    assert np.array_equal(decode(padded + b"trailer", "jpg", 1), decode(whole, "jpg", 1))


@pytest.mark.parametrize(
    "left_over", [b"\x12\x34\x56\x78", bytes(2 * MOST_PADDING), bytes(4) + b"\x12"]
)
def test_anything_else_left_over_is_damage_in_libjpegs_words(left_over: bytes) -> None:
    whole = simplejpeg.encode_jpeg(picture(96, 128, 0), 90)
    reason = r"damaged JPEG: .*\d extraneous bytes before marker 0xd9"
    with pytest.raises(DecodeError, match=reason):
        decode(whole[:-2] + left_over + whole[-2:], "jpg")
