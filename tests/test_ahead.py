"""Shards come into the node's cache before their turn; what goes wrong there is said when it matters."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.samples import SampleReader
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.stores.node_cache import CacheConfig, NodeCache
from pipeline.stores.store import Location
from pipeline.stores.waiting import pause
from pipeline.stream import Stream
from tests.shardset import simple_set

URL = "memory://bucket/crowd"


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    """A batch of 4 reads two of 40 shards; one batch is made ahead, and three further ones are fetched."""
    local = Location(simple_set(tmp_path / "set", "detection", shards=40, per_shard=2))
    for name in local.list_files():
        Location(URL).child(name).write(local.child(name).read())
    yield Stream.open(
        StreamConfig(
            scenes=(MixtureEntry(shards=URL, weight=1),),
            scene_batch=4,
            scene_size=(48, 64),
            lanes=1,
            block=1,
            prefetch=1,
            cache=CacheConfig(folder=str(tmp_path / "cache"), limit_gb=1, ahead=3),
        )
    )
    Location(URL).fs.rm("/bucket", recursive=True)


def shards_of(stream: Stream, steps: range) -> list[int]:
    order = stream.tasks["detection"].order
    return [order.at(position).shard for position in range(4 * steps.start, 4 * steps.stop)]


def cached(stream: Stream) -> set[int]:
    assert stream.config.cache is not None
    there = {path.stem for path in Path(stream.config.cache.folder).glob("*.tar")}
    shards = stream.tasks["detection"].readers[0].manifest.shards
    return {number for number, shard in enumerate(shards) if shard.tar_sha256 in there}


def test_the_next_shards_are_there_before_their_turn(stream: Stream) -> None:
    with stream.batches() as batches:
        next(batches)
        taken = 3 if len(batches._pending) == 2 else 2
        soon = set(shards_of(stream, range(taken + 3)))
        ends = time.monotonic() + 10
        while cached(stream) != soon and time.monotonic() < ends:
            time.sleep(0.01)
        assert cached(stream) == soon
        time.sleep(0.1)
        assert cached(stream) == soon
    reads = stream.tasks["detection"].readers[0].tars.stats
    assert reads.cache_misses == len(soon)


def test_a_shard_that_is_missing_ends_the_stream_at_its_turn(stream: Stream) -> None:
    missing = shards_of(stream, range(5, 6))[-1]
    turn = shards_of(stream, range(20)).index(missing) // 4
    Location(URL).child(f"shards/v0/{missing:06d}.tar").remove()
    with stream.batches() as batches:
        for _ in range(turn):
            next(batches)
        with pytest.raises(UserError, match=rf"{missing:06d}\.tar is missing, though the manifest"):
            next(batches)


def test_an_index_that_planning_gave_up_is_read_by_who_needs_it(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a short stream ends its planning, in the middle of an index that samples wait for."""
    read_index = SampleReader._read_index

    def slowly(reader: SampleReader, variant: int, shard: int) -> pa.Table:
        pause(0.3)
        return read_index(reader, variant, shard)

    monkeypatch.setattr(SampleReader, "_read_index", slowly)
    with stream.batches(0, 1) as batches:
        assert [batch.step for batch in batches] == [0]


def test_a_sample_that_is_needed_does_not_wait_for_room_with_what_is_fetched_ahead(
    stream: Stream, tmp_path: Path
) -> None:
    """A replacement of a bad sample may come out of a shard that is still to be fetched."""
    shard_set = stream.tasks["detection"].readers[0].shard_set
    largest = max(shard.tar_bytes for shard in shard_set.shards())
    small = CacheConfig(folder=str(tmp_path / "small"), limit_gb=1.5 * largest / 1e9)
    reader = SampleReader(shard_set, cache=NodeCache(small))
    reader.read(0, 0, 0)  # keeps the room
    needed = Event()
    ahead = Thread(target=reader.fetch, args=(0, 1, lambda: not needed.is_set()), daemon=True)
    ahead.start()
    time.sleep(0.1)
    at_need = Thread(target=reader.read, args=(0, 1, 0), daemon=True)
    at_need.start()
    at_need.join(10)
    assert not at_need.is_alive()
    needed.set()
    ahead.join(10)
    assert not ahead.is_alive()
