"""The stream is the same to the pixel, whoever reads it and wherever he starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.batch import Batch, Images
from pipeline.errors import UserError
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.stream import Stream
from tests.shardset import simple_set

STEPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StreamConfig:
    root = tmp_path_factory.mktemp("sets")
    crowd = simple_set(root / "crowd", "detection", shards=5, per_shard=7)
    ecp = simple_set(root / "ecp", "detection", shards=3, per_shard=9, dataset="ecp")
    msmt = simple_set(root / "msmt", "reid", shards=9, per_shard=5, dataset="msmt")
    people = simple_set(root / "lup", "reid", shards=2, per_shard=8, dataset="lup", labelled=False)
    return StreamConfig(
        seed=3,
        scenes=(MixtureEntry(shards=crowd, weight=2), MixtureEntry(shards=ecp, weight=1)),
        canvases=(MixtureEntry(shards=msmt, weight=3), MixtureEntry(shards=people, weight=1)),
        scene_batch=4,
        canvas_batch=8,
        lanes=2,
        scene_size=(48, 64),
        canvas_size=(48, 32),
    )


def read(
    config: StreamConfig,
    world_size: int = 1,
    accumulation: int = 1,
    start: int = 0,
    stop: int = STEPS,
) -> list[list[Batch]]:
    """For each step, the parts of all ranks and micro-steps in order."""
    steps: list[list[Batch]] = [[] for _ in range(start, stop)]
    for rank in range(world_size):
        stream = Stream.open(config, rank, world_size, accumulation)
        with stream.batches(start, stop) as batches:
            for number, batch in enumerate(batches):
                assert batch.step == start + number // accumulation
                steps[number // accumulation].append(batch.to("cpu"))
    return steps


def joined(parts: list[Images | None]) -> dict[str, torch.Tensor | tuple[str, ...]]:
    """Parts of a global batch as one, in the terms of the global batch."""
    images = [part for part in parts if part is not None]
    offsets = [sum(len(other.keys) for other in images[:i]) for i in range(len(images))]
    one: dict[str, torch.Tensor | tuple[str, ...]] = {
        "keys": tuple(key for part in images for key in part.keys),
        "image": torch.cat([part.image + o for part, o in zip(images, offsets, strict=True)]),
    }
    for name in ("position", "domain", "person", "identity"):
        one[name] = torch.cat([getattr(part, name) for part in images])
    for view in (0, 1):
        for name in ("pixels", "valid", "boxes", "use"):
            one[f"{name}{view}"] = torch.cat([getattr(part.views[view], name) for part in images])
    return one


def assert_same(left: list[list[Batch]], right: list[list[Batch]]) -> None:
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        for task in ("scenes", "canvases"):
            first = joined([getattr(batch, task) for batch in ours])
            second = joined([getattr(batch, task) for batch in theirs])
            assert first.keys() == second.keys()
            for name, value in first.items():
                other = second[name]
                if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
                    assert torch.equal(value, other), f"{task}.{name}"
                else:
                    assert value == other


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, object]:
    """What of a definition may differ, by the names of its settings."""
    mixture = st.tuples(*[st.sampled_from([1, 2, 5])] * 4)
    first, later = draw(mixture), draw(mixture)
    changed = draw(st.integers(1, STEPS))
    return {
        "seed": draw(st.integers(0, 99)),
        "lanes": draw(st.sampled_from([None, 1, 2, 4])),
        "block": draw(st.integers(1, 4)),
        "canvas_group": draw(st.sampled_from([1, 2])),
        "weights": first,
        "later": draw(st.sampled_from([None, (changed, later)])),
        "mode": draw(st.sampled_from(["exact", "fast", "reference", "device"])),
    }


def defined(config: StreamConfig, drawn: dict[str, object]) -> StreamConfig:
    tree = config.model_dump()
    weights, later, mode = (drawn.pop(name) for name in ("weights", "later", "mode"))
    tree |= drawn
    tree["views"]["mode"] = mode
    _weigh(tree, weights)
    if later is not None:
        step, others = later
        segment = {key: [dict(entry) for entry in tree[key]] for key in ("scenes", "canvases")}
        _weigh(segment, others)
        tree["segments"] = [{"from_step": step, **segment}]
    return StreamConfig.model_validate(tree)


def _weigh(tree: dict[str, Any], weights: tuple[int, ...]) -> None:
    for entry, weight in zip([*tree["scenes"], *tree["canvases"]], weights, strict=True):
        entry["weight"] = weight


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    drawn=definitions(),
    splits=st.tuples(*[st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4)])] * 2),
    threads=st.integers(1, 5),
    prefetch=st.integers(1, 4),
    cut=st.integers(0, STEPS - 1),
)
def test_ranks_accumulation_threads_and_resume_change_nothing(
    config: StreamConfig,
    drawn: dict[str, object],
    splits: tuple[tuple[int, int], tuple[int, int]],
    threads: int,
    prefetch: int,
    cut: int,
) -> None:
    here = defined(config, drawn)
    there = here.model_copy(update={"threads": threads, "prefetch": prefetch})
    undisturbed = read(here)
    assert_same(undisturbed[:cut], read(there, *splits[0], stop=cut))
    assert_same(undisturbed[cut:], read(there, *splits[1], start=cut))


def test_ids_are_those_of_the_batches(config: StreamConfig) -> None:
    stream = Stream.open(config)
    for step, (batch,) in enumerate(read(config)):
        ids = stream.ids(step)
        assert batch.scenes is not None
        assert batch.canvases is not None
        for task, images in (("detection", batch.scenes), ("reid", batch.canvases)):
            assert ids[task] == list(zip(images.position.tolist(), images.keys, strict=True))


def test_rank_ids_cover_the_batch_in_order(config: StreamConfig) -> None:
    whole = Stream.open(config).ids(5)
    parts = [part for rank in (0, 1) for part in Stream.open(config, rank, 2, 2).rank_ids(5)]
    assert {task: [i for part in parts for i in part[task]] for task in whole} == whole


def test_the_digest_names_what_decides_and_nothing_else(config: StreamConfig) -> None:
    digest = Stream.open(config).digest
    assert Stream.open(config, 1, 2).digest == digest
    same = config.model_copy(
        update={"threads": 7, "workers": "processes", "prefetch": 1, "max_bad_share": 0.5}
    )
    assert Stream.open(same).digest == digest
    for change in ({"seed": 4}, {"lanes": 4}, {"block": 1}, {"scene_size": (64, 64)}):
        assert Stream.open(config.model_copy(update=change)).digest != digest


def test_a_world_that_does_not_divide_the_batches_is_told_what_would(config: StreamConfig) -> None:
    with pytest.raises(UserError, match=r"is 3, which does not divide .* 4 and .* 8.*1, 2, 4"):
        Stream.open(config, 0, 3)


def test_a_single_task(config: StreamConfig) -> None:
    stream = Stream.open(config.model_copy(update={"canvas_batch": 0}))
    with stream.batches(0, 1) as batches:
        (batch,) = batches
    assert batch.canvases is None
    assert stream.domains == {"detection": ("crowd", "ecp"), "reid": ()}


def test_pairs_of_one_identity_stay_in_one_batch(tmp_path: Path) -> None:
    url = simple_set(tmp_path, "reid", shards=3, per_shard=8)
    config = StreamConfig(canvases=(MixtureEntry(shards=url, weight=1),), canvas_batch=8)
    stream = Stream.open(config)
    for step in range(9):
        numbers = [int(key[-5:]) // 2 for _, key in stream.ids(step)["reid"]]
        assert numbers[::2] == numbers[1::2]
