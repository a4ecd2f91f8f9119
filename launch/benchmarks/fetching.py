"""How many shards the nodes of a job fetch, by the order alone: no images, no stores.

A node holds `RANKS` ranks, which own neighbouring slices of every batch, and a cache of whole shards
that forgets the one used longest ago.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launch.benchmarks.measure import Row, exactly
from pipeline.order import Order, Segment, Source

RANKS = 8
LANES = 64
BATCH = 512
"""A position for each of 64 nodes' ranks."""
BLOCK = 4
NODES = (1, 2, 4, 8, 16, 32, 64)
MOST_FETCHED = 1.2
"""Times the dataset, an epoch, by all nodes together."""


@dataclass(frozen=True)
class Catalogue:
    shards: tuple[int, ...]
    """Of each dataset."""
    weights: tuple[float, ...]
    slots: int
    """In every shard."""

    def order(self) -> Order:
        sources = [
            Source(f"d{number}", (self.slots,) * count, self._runs)
            for number, count in enumerate(self.shards)
        ]
        mixture = Segment(0, dict(enumerate(self.weights)))
        return Order(0, BATCH, sources, [mixture], LANES, block=BLOCK)

    def _runs(self, shard: int) -> NDArray[np.int32]:
        return np.arange(self.slots, dtype=np.int32)


LARGE = Catalogue((5 * LANES, 8 * LANES, 16 * LANES), (1, 1, 2), 32)
"""All have four shards a lane or more: dealt to lanes. Epochs of their own length."""
SMALL = Catalogue((4 * LANES - 1, 8 * LANES), (1, 2), 128)
"""The first is one shard short of that, so all lanes share it."""
FEW_NODES = (1, 8, 64)


def fetching_rows() -> list[Row]:
    large, small = touched_shards(LARGE), touched_shards(SMALL)
    rooms = {count: room(LARGE, count) for count in NODES}
    fetched = {count: fetched_share(LARGE, large, count, rooms[count]) for count in NODES}
    return [
        *(
            Row(
                f"fetched by {count} nodes of {RANKS} ranks",
                exactly(share),
                "x the datasets, an epoch",
                MOST_FETCHED,
                "lower",
                remark=f"caches of {rooms[count]} of {sum(LARGE.shards)} shards",
            )
            for count, share in fetched.items()
        ),
        *(
            Row(
                f"the same, one dataset a shard below 4 a lane, {count} nodes",
                exactly(fetched_share(SMALL, small, count, room(SMALL, count))),
                "x the datasets, an epoch",
                remark=f"caches of {room(SMALL, count)} of {sum(SMALL.shards)} shards",
            )
            for count in FEW_NODES
        ),
    ]


def room(catalogue: Catalogue, nodes: int) -> int:
    """Shards that a node must hold: a block and one shard more for each of its lanes and datasets."""
    lanes = -(-LANES // nodes)
    return lanes * len(catalogue.shards) * (BLOCK + 1)


def touched_shards(catalogue: Catalogue, epochs: float = 2.5) -> NDArray[np.int64]:
    """(positions,): the shard that each position reads, numbered through all datasets."""
    order = catalogue.order()
    steps = int(epochs * sum(catalogue.shards) * catalogue.slots) // BATCH
    places = [order.at(position) for position in range(steps * BATCH)]
    first = np.cumsum([0, *catalogue.shards])
    return np.array([first[place.source] + place.shard for place in places])


def fetched_share(catalogue: Catalogue, touched: NDArray[np.int64], nodes: int, room: int) -> float:
    """Shards fetched by all nodes over those that reading every sample once takes."""
    by_node = touched.reshape(-1, nodes, BATCH // nodes)
    fetched = sum(_misses(by_node[:, node].ravel().tolist(), room) for node in range(nodes))
    return fetched / (len(touched) / catalogue.slots)


def _misses(shards: Iterable[int], room: int) -> int:
    cached: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for shard in shards:
        if shard in cached:
            cached.move_to_end(shard)
            continue
        misses += 1
        cached[shard] = None
        if len(cached) > room:
            cached.popitem(last=False)
    return misses
