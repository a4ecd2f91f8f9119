"""The order of one task: a pure function from a global position to a place in the shards.

positions    0 1 | 2 3 | ...            `group` positions are a turn, which belongs to one dataset
global batch B positions = L lanes      a lane owns the same slice of every batch, and its own shards
epoch        per (lane, dataset)        shards permuted, blocks of a few shards shuffled together
segment      from a batch on            another mixture; every dataset goes on where it was
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import Cache
from pipeline.keyed import Draws, permutation
from pipeline.mixture import Mixture

MOST_LANES = 64
SHARDS_PER_LANE = 4
"""A dataset with fewer shards a lane is shared by all lanes."""
NEAR_REPLACEMENTS = 3
"""Replacements tried in the bad sample's own shard, before others of its lane are opened."""


@dataclass(frozen=True)
class Source:
    """A dataset as the order sees it."""

    name: str
    slots: tuple[int, ...]
    """Places in each shard."""
    runs: Callable[[int], NDArray[np.int32]]
    """The run of every slot of a shard; called when the shard is near, not before."""


class Place(NamedTuple):
    source: int
    epoch: int
    shard: int
    slot: int


class Queue(NamedTuple):
    """What one lane, or all lanes together (-1), draw from one dataset."""

    source: int
    lane: int


@dataclass(frozen=True)
class Segment:
    """A mixture, and the batch that it begins with."""

    first_batch: int
    weights: Mapping[int, float]
    """Of each source that takes part."""


@dataclass(frozen=True)
class Stretch:
    """A segment as the order needs it."""

    first_batch: int
    start: int
    """Its first turn."""
    mixture: Mixture
    members: tuple[int, ...]
    """The source that each dataset of the mixture is."""
    before: Mapping[Queue, int]
    """Turns that each queue was drawn from in the segments before."""


@dataclass(frozen=True)
class Epoch:
    """One pass of a queue over its shards."""

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Draws before each block, and at the end their sum."""


class Order:
    """Cheap to make whatever the number of samples: shards are looked into when they are near.

    `batch` is a multiple of `group`, and `lanes` divides batch / group.
    """

    def __init__(
        self,
        seed: int,
        batch: int,
        sources: Sequence[Source],
        segments: Sequence[Segment],
        lanes: int,
        group: int = 1,
        block: int = 4,
    ) -> None:
        self.seed, self.batch, self.lanes, self.group, self.block = seed, batch, lanes, group, block
        self.sources = tuple(sources)
        self._batch_turns = batch // group
        self._lane_turns = self._batch_turns // lanes
        self._slots = [np.array(source.slots, np.int64) for source in self.sources]
        self._queues: dict[Queue, NDArray[np.int64]] = {}
        """The shards of a queue, dealt once for all epochs."""
        for number in range(len(self.sources)):
            self._queues.update(self._deal(number))
        self._sizes = {
            queue: int(self._slots[queue.source][shards].sum())
            for queue, shards in self._queues.items()
        }
        self.stretches: list[Stretch] = []
        for segment in segments:
            self.stretches.append(self._stretch(segment))
        self._starts = [stretch.start for stretch in self.stretches]
        self._epochs: Cache[tuple[Queue, int], Epoch] = Cache(2 * len(self._queues))
        self._blocks: Cache[tuple[Queue, int, int], NDArray[np.int32]] = Cache(
            2 * len(self._queues)
        )

    def at(self, position: int) -> Place:
        queue, draw = self._draw(position)
        number, offset = divmod(draw, self._sizes[queue])
        epoch = self._epochs.get((queue, number), lambda: self._plan_epoch(queue, number))
        block = int(np.searchsorted(epoch.starts, offset, side="right")) - 1
        rows = self._blocks.get(
            (queue, number, block), lambda: self._plan_block(queue, number, epoch, block)
        )
        shard, slot = rows[offset - int(epoch.starts[block])]
        return Place(queue.source, number, int(shard), int(slot))

    def replacement(self, position: int, attempt: int) -> Place:
        """What stands in for an unusable sample at `position`; nobody else's place depends on it."""
        bad = self.at(position)
        draws = Draws(self.seed, "replacement", self.sources[bad.source].name, position, attempt)
        shard = bad.shard
        if attempt >= NEAR_REPLACEMENTS:
            shards = self._queues[self._draw(position)[0]]
            shard = int(shards[draws.index(len(shards))])
        return bad._replace(shard=shard, slot=draws.index(self.sources[bad.source].slots[shard]))

    def stretches_before(self, batch: int | None) -> list[Stretch]:
        """Those that a batch before `batch` belongs to, and the first; None: all."""
        if batch is None:
            return self.stretches
        return [stretch for stretch in self.stretches if stretch.first_batch < max(batch, 1)]

    def _draw(self, position: int) -> tuple[Queue, int]:
        """The queue that a position is served from, and how many draws went before it there."""
        turn, member = divmod(position, self.group)
        stretch = self.stretches[bisect_right(self._starts, turn) - 1]
        dataset = stretch.mixture.dataset(turn - stretch.start)
        source = stretch.members[dataset]
        lane = -1 if self._is_shared(source) else turn % self._batch_turns // self._lane_turns
        queue = Queue(source, lane)
        drawn = stretch.before.get(queue, 0) + self._drawn(
            stretch, dataset, lane, turn - stretch.start
        )
        return queue, drawn * self.group + member

    def _drawn(self, stretch: Stretch, dataset: int, lane: int, turn: int) -> int:
        """Turns of a queue in a stretch, before its `turn`."""
        if lane == -1:
            return stretch.mixture.drawn(dataset, turn)
        return stretch.mixture.drawn_in_lane(dataset, turn, self._lane_turns)

    def _stretch(self, segment: Segment) -> Stretch:
        """What comes after the stretches that there are."""
        start = segment.first_batch * self._batch_turns
        members, weights = zip(*sorted(segment.weights.items()), strict=True)
        key = (self.seed, start) if start else (self.seed,)
        mixture = Mixture(weights, self._batch_turns, *key)
        return Stretch(segment.first_batch, start, mixture, members, self._drawn_before(start))

    def _drawn_before(self, start: int) -> dict[Queue, int]:
        """Turns of every queue before the batch whose first turn is `start`."""
        if not self.stretches:
            return {}
        last = self.stretches[-1]
        drawn = dict(last.before)
        for dataset, source in enumerate(last.members):
            for lane in [-1] if self._is_shared(source) else range(self.lanes):
                turn = start - last.start + max(lane, 0) * self._lane_turns
                queue = Queue(source, lane)
                drawn[queue] = drawn.get(queue, 0) + self._drawn(last, dataset, lane, turn)
        return drawn

    def _plan_epoch(self, queue: Queue, number: int) -> Epoch:
        source = self.sources[queue.source]
        dealt = self._queues[queue]
        shards = dealt[permutation(len(dealt), self.seed, "epoch", source.name, queue.lane, number)]
        slots = self._slots[queue.source][shards]
        starts = np.concatenate(
            [[0], np.cumsum(slots)[self.block - 1 :: self.block], [slots.sum()]]
        )
        return Epoch(shards, np.unique(starts))

    def _plan_block(self, queue: Queue, number: int, epoch: Epoch, block: int) -> NDArray[np.int32]:
        source = self.sources[queue.source]
        shards = epoch.shards[block * self.block : (block + 1) * self.block]
        first_draw = number * int(epoch.starts[-1]) + int(epoch.starts[block])
        return shuffle_block(
            [(int(shard), source.runs(int(shard))) for shard in shards],
            self.group,
            first_draw % self.group,
            (self.seed, "block", source.name, queue.lane, number, block),
        )

    def _is_shared(self, source: int) -> bool:
        return int((self._slots[source] > 0).sum()) < SHARDS_PER_LANE * self.lanes

    def _deal(self, number: int) -> dict[Queue, NDArray[np.int64]]:
        """A source's shards, empty ones left out, for all lanes together or dealt to them."""
        source = self.sources[number]
        shards = permutation(len(source.slots), self.seed, "deal", source.name)
        shards = shards[self._slots[number][shards] > 0]
        if self._is_shared(number):
            return {Queue(number, -1): shards}
        return {Queue(number, lane): shards[lane :: self.lanes] for lane in range(self.lanes)}


def default_lanes(turns: int) -> int:
    """The largest divisor of a batch's turns up to MOST_LANES."""
    return max(lanes for lanes in range(1, MOST_LANES + 1) if turns % lanes == 0)


def shuffle_block(
    shards: Sequence[tuple[int, NDArray[np.int32]]],
    group: int,
    phase: int,
    key: tuple[str | int, ...],
) -> NDArray[np.int32]:
    """(rows, 2): shard and slot of all rows of `shards`, shuffled with `group` of a run together.

    Draw `phase` of a turn comes first: whatever does not fill a group goes to the two ends and into
    groups of mixed runs, so that whole groups stay aligned with the turns.
    """
    rows = np.concatenate(
        [np.stack([np.full(len(runs), s), np.arange(len(runs)), runs], 1) for s, runs in shards]
    ).astype(np.int32)
    rows = rows[permutation(len(rows), *key, "rows")]
    if group > 1:
        rows = _group_runs(rows, group, phase, key)
    return rows[:, :2]


def _group_runs(
    rows: NDArray[np.int32], group: int, phase: int, key: tuple[str | int, ...]
) -> NDArray[np.int32]:
    by_run = np.lexsort((rows[:, 2], rows[:, 0]))  # stable: inside a run they stay shuffled
    ordered = rows[by_run]
    new_run = np.any(np.diff(ordered[:, [0, 2]], axis=0, prepend=-1) != 0, axis=1)
    firsts = np.flatnonzero(new_run)
    lengths = np.diff(np.append(firsts, len(rows)))
    rank = np.arange(len(rows)) - np.repeat(firsts, lengths)
    whole = rank < np.repeat(lengths // group * group, lengths)
    full, single = ordered[whole].reshape(-1, group, 3), ordered[~whole]
    head = -phase % group
    if len(single) < head and len(full):
        single, full = np.concatenate([full[0], single]), full[1:]
    single = single[permutation(len(single), *key, "singles")]
    head_rows, single = single[:head], single[head:]
    mixed = len(single) // group * group
    groups = np.concatenate([full, single[:mixed].reshape(-1, group, 3)])
    groups = groups[permutation(len(groups), *key, "groups")]
    return np.concatenate([head_rows, groups.reshape(-1, 3), single[mixed:]])
