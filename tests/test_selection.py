"""`pipeline select`: which samples are drawn, without a shard being written again."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.annotation import Person
from pipeline.errors import UserError
from pipeline.select import SelectConfig, select
from pipeline.selection import Selection
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.shards import FORGOTTEN, ShardSet
from pipeline.stream import Stream
from tests.shardset import Item, canvas_items, scene_items, write_shard_set


def scenes_of_heights(heights: list[float]) -> list[Item]:
    """In each scene one person, and a region to ignore that is higher than all of them."""
    items = []
    for item, height in zip(scene_items(len(heights)), heights, strict=True):
        people = (
            Person(box=(0.0, 0.0, 20.0, height), visible_box=(0.0, 0.0, 10.0, height)),
            Person(box=(0.0, 0.0, 20.0, 96.0), ignore=True),
        )
        annotation = item.annotation.model_copy(update={"persons": people})
        items.append(replace(item, annotation=annotation))
    return items


def keys(url: str, selection: str | None, steps: int = 12) -> list[str]:
    entry = MixtureEntry(shards=url, weight=1, selection=selection)
    stream = Stream.open(StreamConfig(scenes=(entry,), scene_batch=2, scene_size=(48, 64)))
    return [key for step in range(steps) for _, key in stream.ids(step)["detection"]]


def chosen(url: str, **asked: Any) -> list[int]:
    """Numbers of the samples, over all shards."""
    selection = select(ShardSet(url), SelectConfig.model_validate(asked))
    shards = [selection.chosen(shard) for shard in range(len(selection.slots))]
    return [number for number, is_in in enumerate(i for shard in shards for i in shard) if is_in]


@pytest.fixture
def tall(tmp_path: Path) -> str:
    items = scenes_of_heights([10, 50, 20, 60, 30, 70, 40])
    return write_shard_set(tmp_path / "tall", [[items[:4], items[4:]]])


def test_by_the_height_of_people_that_count(tall: str) -> None:
    assert chosen(tall, min_person_height=40) == [1, 3, 5, 6]
    assert chosen(tall, min_person_height=40, min_visible=0.5) == [1, 3, 5, 6]
    with pytest.raises(UserError, match="nothing to select"):
        chosen(tall, min_visible=0.6)


def test_a_larger_fraction_adds_to_a_smaller_one(tall: str) -> None:
    parts = [set(chosen(tall, fraction=share)) for share in (0.2, 0.4, 0.8, 1.0)]
    assert [len(part) for part in parts] == [2, 3, 6, 7]  # of seven, rounded up
    assert all(small < large for small, large in pairwise(parts))
    assert len(chosen(tall, fraction=0.5, min_person_height=40)) == 2
    salted = [chosen(tall, fraction=0.4, salt=str(salt)) for salt in range(8)]
    assert len({tuple(part) for part in salted}) > 1


def test_by_keys_sizes_and_counts(tall: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# mine\ncrowd/train/00001\ncrowd/train/00006\n")
    assert chosen(tall, keys=str(tmp_path / "keys")) == [1, 6]
    assert chosen(tall, exclude_keys=str(tmp_path / "keys")) == [0, 2, 3, 4, 5]
    (tmp_path / "keys").write_text("crowd/train/0001\n")
    with pytest.raises(UserError, match=r"no sample has the key crowd/train/0001 \(.*keys:1\)"):
        chosen(tall, keys=str(tmp_path / "keys"))
    for asked in (
        {"min_size": (97, 0)},
        {"min_size": (0, 129)},
        {"min_persons": 2},
        {"labelled": True},
    ):
        with pytest.raises(UserError, match="nothing to select"):
            chosen(tall, **asked)


def test_by_identities_that_come_often_enough(tmp_path: Path) -> None:
    url = write_shard_set(tmp_path, [[canvas_items(7, per_run=3)]])
    assert chosen(url, min_images=2) == [0, 1, 2, 3, 4, 5]
    assert chosen(url, labelled=True) == list(range(7))


def test_the_stream_draws_the_selected_alone_all_of_them(tall: str, tmp_path: Path) -> None:
    file = str(tmp_path / "tall.selection")
    main(["select", tall, "--out", file, "--set", "min_person_height=40"])
    drawn = keys(tall, file)
    wanted = {f"crowd/train/{number:05d}" for number in (1, 3, 5, 6)}
    assert [set(drawn[start : start + 4]) for start in range(0, 24, 4)] == [wanted] * 6
    assert len(set(keys(tall, None))) == 7


def test_a_selection_is_part_of_the_stream(tall: str, tmp_path: Path) -> None:
    digests = set()
    for height in (None, 20, 40):
        file = str(tmp_path / f"{height}.selection") if height else None
        if height:
            main(["select", tall, "--out", str(file), "--set", f"min_person_height={height}"])
        entry = MixtureEntry(shards=tall, weight=1, selection=file)
        digests.add(Stream.open(StreamConfig(scenes=(entry,), scene_batch=2)).digest)
    assert len(digests) == 3


def test_two_selections_of_one_set_are_two_sources(tall: str, tmp_path: Path) -> None:
    entries = []
    for height, weight in ((20, 1), (60, 3)):
        file = str(tmp_path / f"{height}.selection")
        main(["select", tall, "--out", file, "--set", f"min_person_height={height}"])
        entries.append(MixtureEntry(shards=tall, weight=weight, selection=file))
    stream = Stream.open(StreamConfig(scenes=tuple(entries), scene_batch=2))
    drawn = [stream.tasks["detection"].order.at(position).source for position in range(40)]
    assert (drawn.count(0), drawn.count(1)) == (10, 30)
    with pytest.raises(UserError, match="twice"):
        Stream.open(StreamConfig(scenes=(entries[0], entries[0]), scene_batch=2))


def test_forgotten_samples_are_not_selected_and_selected_ones_may_be_forgotten(
    tmp_path: Path,
) -> None:
    items = scene_items(6)
    url = write_shard_set(tmp_path / "0", [[items]])
    before = select(ShardSet(url), SelectConfig())
    items[2] = replace(items[2], status=FORGOTTEN)
    child = write_shard_set(tmp_path / "1", [[items]])
    assert chosen(child) == [0, 1, 3, 4, 5]
    assert list(before.chosen(0)) == [True] * 6


def test_a_selection_fits_its_own_set_alone(tall: str, tmp_path: Path) -> None:
    file = str(tmp_path / "tall.selection")
    main(["select", tall, "--out", file, "--set", "min_person_height=40"])
    other = write_shard_set(tmp_path / "other", [[scene_items(7)]])
    with pytest.raises(UserError, match="made of another shard set"):
        keys(other, file)
    with pytest.raises(UserError, match="no selection at"):
        keys(tall, str(tmp_path / "missing"))
    (tmp_path / "junk").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="is not a selection"):
        keys(tall, str(tmp_path / "junk"))
    with pytest.raises(UserError, match="did you mean `min_person_height`"):
        main(["select", tall, "--out", file, "--set", "min_persons_height=4"])
    with pytest.raises(UserError, match=r"--out .*entry: "):
        main(["select", tall, "--out", f"{file}/entry"])


def test_what_is_read_is_what_was_written(tall: str, tmp_path: Path) -> None:
    made = select(ShardSet(tall), SelectConfig(min_person_height=40))
    digest = made.write(str(tmp_path / "file"))
    read = Selection.read(str(tmp_path / "file"))
    assert read == replace(made, sha256=digest)
    assert read.filter == {"min_person_height": 40}
    assert read.counts == (2, 2)
