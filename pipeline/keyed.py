"""Keyed randomness: every draw is a function of its key, so there is no generator state to save.

Built on raw Philox words, whose values NumPy promises to keep between versions (NEP 19); of its
distributions and shuffles it promises that not.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


class Draws:
    """A sequence of draws that `parts` alone decide."""

    def __init__(self, *parts: str | int) -> None:
        self._bits = np.random.Philox(key=_key(parts))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """In [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def uniforms(self, count: int) -> list[float]:
        """`count` draws in [0, 1), cheaper than one by one and the same."""
        return ((self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53).tolist()

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def index(self, count: int) -> int:
        """In [0, count)."""
        return int(self.uniform() * count)


def permutation(count: int, *parts: str | int) -> NDArray[np.int64]:
    """A permutation of range(count) that `parts` alone decide."""
    return np.argsort(words(count, *parts), kind="stable").astype(np.int64)


def words(count: int, *parts: str | int) -> NDArray[np.uint64]:
    """64 random bits each."""
    return np.asarray(np.random.Philox(key=_key(parts)).random_raw(count))


def _key(parts: tuple[str | int, ...]) -> NDArray[np.uint64]:
    text = "\0".join(map(str, parts)).encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype="<u8")
