"""The order at scale: what it looks into, what nodes fetch, how well it shuffles. No images."""

import numpy as np
import pytest
from numpy.typing import NDArray

from launch.benchmarks import fetching, shuffling
from pipeline.keyed import permutation
from pipeline.order import Order, Segment, Source

STORED = shuffling.Stored(shards=512, slots=64)


def test_a_billion_samples_are_not_looked_at_to_begin_anywhere() -> None:
    looked_into: list[int] = []

    def runs(shard: int) -> NDArray[np.int32]:
        looked_into.append(shard)
        return np.arange(10_000, dtype=np.int32)

    source = Source("many", (10_000,) * 100_000, runs)
    order = Order(0, 4096, [source], [Segment(0, {0: 1.0})], lanes=64)
    place = order.at(3_590_324_224 + 2068)
    assert place.epoch == 3 and place.shard in looked_into
    assert len(looked_into) == order.block


@pytest.mark.parametrize("nodes", [1, 8, 64])
def test_all_nodes_together_fetch_a_dataset_once_an_epoch(nodes: int) -> None:
    catalogue = fetching.Catalogue((5 * fetching.LANES, 8 * fetching.LANES), (1, 2), 16)
    touched = fetching.touched_shards(catalogue, epochs=1.5)
    room = fetching.room(catalogue, nodes)
    assert fetching.fetched_share(catalogue, touched, nodes, room) <= fetching.MOST_FETCHED


def test_lanes_that_several_nodes_read_would_be_seen() -> None:
    """A check of the check: without caches every sample fetches its shard."""
    catalogue = fetching.Catalogue((5 * fetching.LANES,), (1,), 16)
    touched = fetching.touched_shards(catalogue, epochs=1)
    assert fetching.fetched_share(catalogue, touched, 8, 1) > 4


def test_blocks_shuffle_better_than_a_buffer_that_opens_more_shards() -> None:
    full = _quality(permutation(STORED.samples, "full"))
    four, eight = (_quality(shuffling.our_order(STORED, block)) for block in (4, 8))
    buffered = _quality(shuffling.buffered_order(STORED, 128))
    assert min(four.disarray, eight.disarray) > 0.95 * full.disarray
    assert full.correlation < eight.correlation < four.correlation < buffered.correlation
    assert four.batch_pairs < buffered.batch_pairs
    assert four.open_shards < buffered.open_shards


def _quality(samples: shuffling.Samples) -> shuffling.Quality:
    assert np.array_equal(np.sort(samples), np.arange(STORED.samples)), "not an epoch"
    return shuffling.quality(samples, STORED)
