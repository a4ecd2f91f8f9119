"""Segments: the mixture changes at a step, datasets go on where they were, history stays what it was."""

from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.identities import Identities
from pipeline.order import Order, Segment, Source
from pipeline.settings import MixtureEntry, SegmentConfig, StreamConfig
from pipeline.stream import Stream
from tests.shardset import simple_set


def source(name: str, shards: int, slots: int, run_length: int) -> Source:
    return Source(
        name, (slots,) * shards, lambda shard: np.arange(slots, dtype=np.int32) // run_length
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9),
    weights=st.lists(
        st.tuples(*[st.sampled_from([0, 1, 2, 5])] * 3).filter(any), min_size=1, max_size=4
    ),
    gaps=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    shards=st.tuples(*[st.integers(1, 12)] * 3),
    batch=st.sampled_from([(8, 1, 1), (8, 4, 1), (8, 2, 2), (12, 3, 2)]),
)
def test_no_epoch_misses_or_repeats_a_sample_over_changes_of_the_mixture(
    seed: int,
    weights: list[tuple[int, ...]],
    gaps: list[int],
    shards: tuple[int, ...],
    batch: tuple[int, int, int],
) -> None:
    size, lanes, group = batch
    starts = [0, *np.cumsum(gaps)]
    segments = [
        Segment(int(start), {number: w for number, w in enumerate(mixture) if w})
        for start, mixture in zip(starts, weights)
    ]
    sources = [source(name, count, 4, 2) for name, count in zip("abc", shards, strict=True)]
    order = Order(seed, size, sources, segments, lanes, group, block=2)
    places = [order.at(position) for position in range(80 * size)]
    for number, segment in enumerate(segments):
        end = starts[number + 1] if number + 1 < len(segments) else 80
        drawn = Counter(p.source for p in places[segment.first_batch * size : end * size])
        total, turns = sum(segment.weights.values()), (end - segment.first_batch) * size / group
        assert drawn.keys() <= segment.weights.keys()
        for member, weight in segment.weights.items():
            assert abs(drawn[member] / group - turns * weight / total) <= 1 + turns / 4096
    passes = defaultdict(list)
    for position, place in enumerate(places):
        queue, _ = order._draw(position)
        passes[queue, place.epoch].append((place.shard, place.slot))
    for (queue, epoch), slots in passes.items():
        assert len(set(slots)) == len(slots)
        if (queue, epoch + 1) in passes:
            assert len(slots) == order._sizes[queue]


def config(root: Path, **settings: object) -> StreamConfig:
    for name, task in (("a", "reid"), ("b", "reid"), ("c", "reid"), ("scenes", "detection")):
        if not (root / name).exists():
            simple_set(root / name, task, 3, 6, dataset=name)  # type: ignore[arg-type]
    first = {
        "scenes": (entry(root, "scenes"),),
        "canvases": (entry(root, "a", 3), entry(root, "b")),
        "scene_batch": 2,
        "canvas_batch": 8,
        "scene_size": (48, 64),
        "canvas_size": (48, 32),
    }
    return StreamConfig.model_validate({**first, **settings})


def entry(root: Path, name: str, weight: float = 1) -> MixtureEntry:
    return MixtureEntry(shards=str(root / name), weight=weight)


def test_what_came_before_a_segment_stays_what_it_was(tmp_path: Path) -> None:
    plain = Stream.open(config(tmp_path))
    later = SegmentConfig(from_step=5, canvases=(entry(tmp_path, "c"), entry(tmp_path, "a")))
    changed = Stream.open(config(tmp_path, segments=(later,)))
    assert [changed.ids(step) for step in range(5)] == [plain.ids(step) for step in range(5)]
    assert changed.ids(5)["detection"] == plain.ids(5)["detection"]
    from_five = {key.split("/")[0] for step in range(5, 9) for _, key in changed.ids(step)["reid"]}
    assert from_five == {"a", "c"}


def test_a_run_under_way_may_be_given_a_segment_that_begins_later(tmp_path: Path) -> None:
    """The digest of its history does not change, and nobody's row or domain does."""
    plain = Stream.open(config(tmp_path))
    later = SegmentConfig(from_step=5, canvases=(entry(tmp_path, "c"),))
    changed = Stream.open(config(tmp_path, segments=(later,)))
    assert changed.digest != plain.digest
    assert changed.history_digest(5) == plain.history_digest(5) == plain.digest
    assert changed.history_digest(6) == changed.digest
    assert changed.identities.pairs[: plain.identities.num_rows] == plain.identities.pairs
    assert changed.identities.num_rows > plain.identities.num_rows
    assert changed.domains["reid"] == (*plain.domains["reid"], "c")


def test_rows_of_a_resumed_run_stay_whatever_became_of_its_sets(tmp_path: Path) -> None:
    known = Identities(pairs=(("gone", "train:0"), ("a", "train:0001")))
    stream = Stream.open(config(tmp_path), identities=known)
    assert stream.identities.pairs[:2] == known.pairs
    assert stream.identities.row("a", "train:0001") == 1


def test_segments_rise() -> None:
    later = [{"from_step": 5}, {"from_step": 5}]
    with pytest.raises(ValidationError, match="steps that rise"):
        StreamConfig.model_validate({"segments": later})


def test_an_unchanged_mixture_is_no_segment() -> None:
    one = SimpleNamespace(shards="a", weight=1.0)
    scenes = (MixtureEntry(**vars(one)),)
    same = StreamConfig(scenes=scenes, segments=(SegmentConfig(from_step=3, scenes=scenes),))
    assert same.mixtures("detection") == [(0, scenes)]
