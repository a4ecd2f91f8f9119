"""The arithmetic of a plan's order: keyed shuffles, runs and cuts, on arrays of numbers."""

import hashlib

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
DIGEST_BYTES = 16


def digest(*parts: object) -> bytes:
    """What keyed shuffles sort by: sha256 of the parts, cut to 16 bytes."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:DIGEST_BYTES]


def sort_digests(
    digests: bytes | bytearray, chosen: Numbers | None = None
) -> tuple[NDArray[np.uint64], Numbers]:
    """Digests, all or the chosen ones, sorted as (N, 2) numbers, and the place of each before.

    Equal ones stay in their order.
    """
    numbers = np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
    numbers = numbers if chosen is None else numbers[chosen]
    places = np.lexsort((numbers[:, 1], numbers[:, 0]))
    return numbers[places], places


def turns(identities: Numbers) -> Numbers:
    """How many of its identity come before each sample."""
    together = np.argsort(identities, kind="stable")
    ordered = identities[together]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.maximum.accumulate(np.where(first, np.arange(len(ordered)), 0))
    found = np.empty_like(starts)
    found[together] = np.arange(len(ordered)) - starts
    return found


def heads_of(identities: Numbers, heads: NDArray[np.bool_]) -> Numbers:
    """The head of each sample's run, as a number among heads: the last of its identity so far.

    The first of each identity must be a head.
    """
    together = np.argsort(identities, kind="stable")
    last = np.maximum.accumulate(np.where(heads[together], np.arange(len(together)), 0))
    found = np.empty_like(together)
    found[together] = (np.cumsum(heads) - 1)[together][last]
    return found


def cut(runs: Numbers, weights: Numbers, target: int) -> Numbers:
    """Where parts of about `target` weight begin, and the end; runs are not torn apart."""
    begins = np.flatnonzero(np.concatenate([[True], runs[1:] != runs[:-1]]))
    before = np.concatenate([[0], np.cumsum(weights)])
    total = max(1, int(before[-1]))
    number = before[begins] * -(-total // target) // total
    first = np.concatenate([[True], number[1:] != number[:-1]])
    return np.concatenate([begins[first], [len(runs)]])
