"""How well an order is shuffled: ours, a full shuffle, webdataset's buffer, MosaicML's py1e; no images.

One epoch of one dataset, read by NODES nodes of 8 readers. Samples are numbered as they are stored.

disarray      mean distance of a sample from its stored place, over that of a full shuffle: Spearman's
              footrule (Diaconis and Graham, J. R. Statist. Soc. B 39, 1977), whose mean is n^2 / 3
correlation   of the stored places of neighbours in the order, the serial correlation coefficient (Knuth,
              TAOCP 2, 3.3.2 K); a full shuffle has 0 and storage order 1
batch pairs   pairs of samples in a batch that lie in one shard, over those of a full shuffle
distance      median of the positions between samples of one shard that follow each other, over that of
              a full shuffle
open shards   of a node at a time, from their first sample to their last: what the shuffle costs
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.keyed import permutation
from pipeline.order import Order, Segment, Source

NODES = 8
READERS = 64
"""Of the whole job: a lane each, or a worker process each."""
BATCH = 256
FULL_SHUFFLE = "full shuffle"

Samples = NDArray[np.int64]
"""Stored numbers in the order in which they are read: positions of a batch lie side by side."""


@dataclass(frozen=True)
class Stored:
    shards: int
    slots: int
    """In every shard."""

    @property
    def samples(self) -> int:
        return self.shards * self.slots


FULL = Stored(1024, 1024)
TOY = Stored(128, 128)


@dataclass(frozen=True)
class Quality:
    disarray: float
    correlation: float
    batch_pairs: float
    distance: float
    open_shards: float


def quality_table(stored: Stored = FULL) -> str:
    """Markdown; MosaicML's row only where its package is installed."""
    found = {name: quality(order(), stored) for name, order in _orders(stored).items()}
    full = found[FULL_SHUFFLE]
    lines = [
        "| order | disarray | correlation | batch pairs | distance | open shards a node |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        cells = (
            f"{one.disarray / full.disarray:.3f}",
            f"{one.correlation:.3f}",
            f"{one.batch_pairs / full.batch_pairs:.2f}",
            f"{one.distance / full.distance:.3f}",
            f"{one.open_shards:,.0f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _orders(stored: Stored) -> dict[str, Callable[[], Samples]]:
    orders: dict[str, Callable[[], Samples]] = {
        FULL_SHUFFLE: lambda: permutation(stored.samples, "full"),
        "ours, blocks of 1 shard": lambda: our_order(stored, 1),
        "ours, blocks of 4 (default)": lambda: our_order(stored, 4),
        "ours, blocks of 16": lambda: our_order(stored, 16),
        "webdataset, buffers of 1,000": lambda: buffered_order(stored, 1_000),
        "webdataset, buffers of 10,000": lambda: buffered_order(stored, 10_000),
    }
    if importlib.util.find_spec("streaming"):
        orders["MosaicML py1e, default block of 262,144"] = lambda: py1e_order(stored, 1 << 18)
        orders["MosaicML py1e, block of 16,384"] = lambda: py1e_order(stored, 1 << 14)
    return orders


def our_order(stored: Stored, block: int) -> Samples:
    runs = np.arange(stored.slots, dtype=np.int32)
    source = Source("stored", (stored.slots,) * stored.shards, lambda shard: runs)
    order = Order(0, BATCH, [source], [Segment(0, {0: 1.0})], READERS, block=block)
    places = map(order.at, range(stored.samples))
    return np.array([place.shard * stored.slots + place.slot for place in places])


def buffered_order(stored: Stored, buffer: int) -> Samples:
    """Shuffled shards dealt to readers; each picks from a buffer that it fills by two for every one."""
    shards = permutation(stored.shards, "shards")
    return _woven([_buffered(shards[n::READERS], stored, buffer, n) for n in range(READERS)])


def _buffered(shards: NDArray[np.int64], stored: Stored, buffer: int, reader: int) -> Samples:
    rng = np.random.default_rng(reader)
    coming = iter((shards[:, None] * stored.slots + np.arange(stored.slots)).ravel().tolist())
    held: list[int] = []
    picked = []
    for sample in coming:
        held.append(sample)
        if len(held) < buffer and (more := next(coming, None)) is not None:
            held.append(more)
        if len(held) >= min(100, buffer):
            picked.append(_pick(held, rng))
    while held:
        picked.append(_pick(held, rng))
    return np.array(picked)


def _pick(held: list[int], rng: np.random.Generator) -> int:
    chosen = int(rng.random() * len(held))
    held[chosen], held[-1] = held[-1], held[chosen]
    return held.pop()


def py1e_order(stored: Stored, block: int) -> Samples:
    """By MosaicML's own function, with a canonical node for each node."""
    from streaming.base.shuffle.py1e import get_shuffle_py1e

    sizes = np.full(stored.shards, stored.slots, np.int64)
    return _woven(np.split(get_shuffle_py1e(sizes, NODES, 0, 0, block), NODES))


def _woven(parts: Sequence[Samples]) -> Samples:
    """Batches that take as many of each part, side by side."""
    return np.stack([part.reshape(-1, BATCH // len(parts)) for part in parts], 1).ravel()


def quality(samples: Samples, stored: Stored) -> Quality:
    positions = np.arange(len(samples))
    shards = samples // stored.slots
    return Quality(
        disarray=float(np.abs(samples - positions).mean()),
        correlation=float(np.corrcoef(samples[:-1], samples[1:])[0, 1]),
        batch_pairs=_pairs(shards.reshape(-1, BATCH)),
        distance=_distance(shards),
        open_shards=_open_shards(shards),
    )


def _pairs(batches: NDArray[np.int64]) -> float:
    """Mean number of pairs of one shard in a batch."""
    rows = np.sort(batches, 1)
    total = 0
    for lag in range(1, rows.shape[1]):
        same = int((rows[:, lag:] == rows[:, :-lag]).sum())
        total += same
        if not same:
            break
    return total / len(rows)


def _distance(shards: NDArray[np.int64]) -> float:
    by_shard = np.argsort(shards, kind="stable")
    gaps = np.diff(by_shard)[np.diff(shards[by_shard]) == 0]
    return float(np.median(gaps))


def _open_shards(shards: NDArray[np.int64]) -> float:
    per_node = shards.reshape(-1, NODES, BATCH // NODES)
    total = 0.0
    for node in range(NODES):
        read = per_node[:, node].ravel()
        _, first = np.unique(read, return_index=True)
        _, last = np.unique(read[::-1], return_index=True)
        total += (len(read) - last - first).sum() / len(read)
    return float(total / NODES)
