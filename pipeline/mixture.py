"""The mixture: which dataset has which turn, so evenly that no count is ever off by more than one."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.keyed import words

SHORTEST_CYCLE = 4096
"""Turns in a cycle, at least: weights are exact to half a turn of it."""
SWAPS_PER_TURN = 4
"""Swaps tried; with more, lanes hardly get any more even."""


def quantise(weights: Sequence[float], cycle: int) -> tuple[int, ...]:
    """Turns of each dataset in a cycle: the largest remainders round up, nobody gets none."""
    shares = [Fraction(weight) / sum(map(Fraction, weights)) * cycle for weight in weights]
    counts = [max(1, math.floor(share)) for share in shares]
    while sum(counts) != cycle:
        step = 1 if sum(counts) < cycle else -1
        movable = [d for d in range(len(counts)) if counts[d] + step >= 1]
        furthest = max(movable, key=lambda d: step * (shares[d] - counts[d]))
        counts[furthest] += step
    return tuple(counts)


def assign_turns(counts: Sequence[int]) -> NDArray[np.int16]:
    """The dataset of every turn in one cycle of sum(counts) turns.

    Tijdeman's rule for the chairman assignment problem (Discrete Mathematics 32, 1980): of the
    datasets whose lag is large enough to be served, the one whose deadline comes first. After n
    turns the count of every dataset is within 1 - 1 / (2D - 2) of its exact share of n.
    """
    cycle, datasets = sum(counts), len(counts)
    if datasets == 1:
        return np.zeros(cycle, np.int16)
    parts = 2 * datasets - 2
    turns = np.empty(cycle, np.int16)
    served = [0] * datasets
    for turn in range(1, cycle + 1):
        # Lags in units of 1 / (cycle * parts), to stay with integers.
        lags = [parts * (counts[d] * turn - cycle * served[d]) for d in range(datasets)]
        due = [d for d in range(datasets) if lags[d] >= cycle]
        first = min(due, key=lambda d: (Fraction(cycle * (parts - 1) - lags[d], counts[d]), d))
        turns[turn - 1] = first
        served[first] += 1
    return turns


def shake_turns(
    turns: NDArray[np.int16], counts: Sequence[int], *key: str | int
) -> NDArray[np.int16]:
    """Swaps near turns wherever no count gets off by more than one.

    An even sequence is nearly periodic and beats with the batch: with two equal datasets and an even
    batch, a place of the batch would meet one of them only, for hundreds of steps.
    """
    turns, cycle, datasets = turns.copy(), len(turns), len(counts)
    # Lag behind the exact share before each turn, in units of 1 / cycle.
    lags = np.arange(cycle + 1)[:, None] * np.array(counts)
    lags -= cycle * _running_counts(turns, datasets)
    draws = words(2 * SWAPS_PER_TURN * cycle, *key).reshape(-1, 2)
    firsts, distances = draws[:, 0] % cycle, draws[:, 1] % (2 * datasets) + 1
    for first, last in zip(firsts.tolist(), (firsts + distances).tolist(), strict=True):
        if last >= cycle or turns[first] == turns[last]:
            continue
        early, late = turns[first], turns[last]
        between = slice(first + 1, last + 1)
        if lags[between, early].max() <= 0 <= lags[between, late].min():
            lags[between, early] += cycle
            lags[between, late] -= cycle
            turns[first], turns[last] = late, early
    return turns


class Mixture:
    """An endless sequence of turns, `batch` of them in a global batch.

    The cycle and the batch have no common divisor. A lane owns the same places of every batch, so
    with one it would meet the same few turns of the cycle for ever, and perhaps some dataset never;
    without, every place meets every turn of the cycle once in `cycle` batches.
    """

    def __init__(self, weights: Sequence[float], batch: int, *key: str | int) -> None:
        self.batch = batch
        self.cycle = SHORTEST_CYCLE
        while math.gcd(self.cycle, batch) > 1:
            self.cycle += 1
        self.counts = quantise(weights, self.cycle)
        self._turns = _make_turns(self.counts, *key)
        self._before = _running_counts(self._turns, len(self.counts))
        # The turns in the order in which one place of the batch meets them, and where place 1 starts.
        self._walk_before = _running_counts(
            self._turns[np.arange(self.cycle) * batch % self.cycle], len(self.counts)
        )
        self._stride = pow(batch, -1, self.cycle)

    def dataset(self, turn: int) -> int:
        return int(self._turns[turn % self.cycle])

    def drawn(self, dataset: int, turn: int) -> int:
        """Turns of `dataset` before `turn`."""
        return self._count(self._before, dataset, turn)

    def drawn_in_lane(self, dataset: int, turn: int, lane_turns: int) -> int:
        """Turns of `dataset` before `turn` in its lane, which owns `lane_turns` places of a batch."""
        batch, place = divmod(turn, self.batch)
        first = place - place % lane_turns
        total = 0
        for other in range(first, first + lane_turns):
            start = other * self._stride % self.cycle
            end = start + batch + (other < place)
            total += self._count(self._walk_before, dataset, end)
            total -= self._count(self._walk_before, dataset, start)
        return total

    def _count(self, before: NDArray[np.int32], dataset: int, turn: int) -> int:
        cycles, rest = divmod(turn, self.cycle)
        return cycles * self.counts[dataset] + int(before[rest, dataset])


@lru_cache(maxsize=8)
def _make_turns(counts: tuple[int, ...], *key: str | int) -> NDArray[np.int16]:
    turns = shake_turns(assign_turns(counts), counts, "mixture", *key)
    turns.flags.writeable = False
    return turns


def _running_counts(turns: NDArray[np.int16], datasets: int) -> NDArray[np.int32]:
    """(cycle + 1, D): how often each dataset came before each turn."""
    before = np.zeros((len(turns) + 1, datasets), np.int32)
    np.cumsum(turns[:, None] == np.arange(datasets), axis=0, out=before[1:])
    return before
