"""The page about a shard set: its numbers are those of the set, its pictures the ones that stand out."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import FakeAdapter, fake_crops, fake_scenes, jpeg
from finished_set import write_finished_set
from test_page import Balance, annotation

from pipeline.annotation import Person
from pipeline.errors import UserError
from pipeline.shards import MANIFEST, PROTOCOL_SCHEMA, ShardSet, index_name
from sharding.upkeep.forget import forget
from sharding.upkeep.gallery import scene_outliers
from sharding.upkeep.inspection import inspect
from sharding.upkeep.survey import (
    AnnotatedSample,
    Place,
    annotated_persons,
    annotated_samples,
    survey,
)


def scenes() -> FakeAdapter:
    """30 scenes in which a few things stand out; two cannot be used."""
    adapter = fake_scenes(30)
    for name in ("0004", "0009"):
        adapter.images[name] = adapter.images[name][:150]
    odd = {
        11: (Person(box=(10, 5, 12, 8)),),
        12: (Person(box=(70, 0, 170, 40)),),
        13: tuple(Person(box=(x, 5, x + 10, 30)) for x in range(7)),
        14: (Person(box=(5, 5, 5, 20)),),
    }
    for number, persons in odd.items():
        adapter.samples[number] = replace(adapter.samples[number], persons=persons)
    adapter.images["0015"] = jpeg(96, 160)
    adapter.samples[15] = replace(adapter.samples[15], expected_size=(160, 96))
    return adapter


@pytest.fixture(scope="module")
def scene_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "scenes"
    write_finished_set(scenes(), str(out), shard_bytes=8000)
    return out


@pytest.fixture(scope="module")
def crop_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "crops"
    canvas = {"size": (64, 48), "variants": 3}
    write_finished_set(fake_crops(24, 3), str(out), shard_crops=7, group=2, canvas=canvas)
    return out


def text_of(html: str) -> str:
    """What a reader sees, in one line; the page must be well formed."""
    parser = Balance()
    parser.feed(html)
    assert not parser.open
    assert all(address.startswith("data:image/jpeg;base64,") for address in parser.addresses)
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).split())


def test_the_survey_is_exact_and_finds_every_sample_again(scene_set: Path) -> None:
    shard_set = ShardSet(str(scene_set))
    numbers = survey(shard_set)
    assert len(shard_set.shards()) > 3
    assert len(numbers) == shard_set.manifest.samples == 28
    assert numbers.columns["persons"].sum() == shard_set.manifest.persons
    samples = annotated_samples(shard_set, numbers, 100, seed=0)
    for row, sample in enumerate(samples):
        assert sample.place == numbers.place(row)
        assert sample.annotation.width == numbers.columns["width"][row]
        assert len(annotated_persons([sample])) == numbers.columns["persons"][row]
    assert len({sample.annotation.key for sample in samples}) == 28


def test_a_bounded_sample_is_drawn_over_the_whole_set(scene_set: Path) -> None:
    shard_set = ShardSet(str(scene_set))
    numbers = survey(shard_set)
    drawn, again = ([s.place for s in annotated_samples(shard_set, numbers, 12, 1)] for _ in "ab")
    assert drawn == again
    assert len(drawn) == 12
    assert len({place.shard for place in drawn}) > 2
    assert [s.place for s in annotated_samples(shard_set, numbers, 12, 2)] != drawn


def test_what_stands_out_is_found(scene_set: Path) -> None:
    shard_set = ShardSet(str(scene_set))
    numbers = survey(shard_set)
    samples = annotated_samples(shard_set, numbers, 100, 0)
    keys = {sample.place: sample.annotation.key[-4:] for sample in samples}
    found = {
        outlier.why.partition(":")[0]: (outlier.why, keys[outlier.place])
        for outlier in scene_outliers(numbers, annotated_persons(samples))
    }
    assert found["most persons"] == ("most persons: 7", "0013")
    assert found["smallest box"] == ("smallest box: 3 px", "0011")
    assert found["widest box"] == ("widest box: 100 x 40 px", "0012")
    assert found["mostly outside"] == ("mostly outside: 90 %", "0012")
    assert found["box without area"] == ("box without area: 0 x 15 px", "0014")


def test_a_page_of_scenes(scene_set: Path) -> None:
    html = inspect(str(scene_set))
    text = text_of(html)
    assert "Shard set: fake train" in text
    assert "not the release as published: images 30 instead of 7." in text
    assert "2 samples, 6.7 %, could not be used" in text
    assert "truncated JPEG 2 0004, 0009" in text or "truncated JPEG 2 0009, 0004" in text
    assert "too dull 3" in text
    assert "largest image: 160 x 96" in text
    assert "Licence: none" in text
    assert "rom the annotations of all samples" in text
    assert "A few people" not in text
    estimate = text_of(inspect(str(scene_set), samples=9))
    assert "An estimate: from the annotations of 9 of 28 samples, drawn at random" in estimate
    assert "28 values" in estimate


def test_a_page_of_crops(crop_set: Path) -> None:
    html = inspect(str(crop_set))
    text = text_of(html)
    assert all(f"train:{number} 6 images" in text for number in range(3))
    assert all(text.count(f"variant {variant}") == 4 for variant in range(3))
    assert "Canvas over crop: height" in text
    assert "Persons in an image" not in text
    assert "Nothing" not in text  # 3 too dull


def test_the_same_page_again(crop_set: Path) -> None:
    assert inspect(str(crop_set)) == inspect(str(crop_set))


def test_a_page_of_what_is_left_after_forgetting(crop_set: Path, tmp_path: Path) -> None:
    out = str(shutil.copytree(crop_set, tmp_path / "crops"))
    forget(out, {"train:1"}, ())
    text = text_of(inspect(out))
    assert "train:1" not in text
    assert "Forgotten on request: 6 samples." in text
    forget(out, (), {f"fake/train/{number:04d}" for number in range(24)})
    with pytest.raises(UserError, match="no sample to look at"):
        inspect(out)


def test_protocols_are_summarised(tmp_path: Path) -> None:
    adapter = fake_scenes(4)
    keys = [sample.key for sample in adapter.samples]
    box = (0.0, 0.0, 9.0, 9.0)
    rows = [
        {"query": "a", "key": keys[0], "box": box, "identity": "t:1", "gallery": keys[1:]},
        {"query": "b", "key": keys[1], "box": box, "identity": "t:1", "gallery": keys[2:]},
    ]
    protocols = {"Small": pa.Table.from_pylist(rows, PROTOCOL_SCHEMA)}
    list_samples = adapter.list_samples
    adapter.list_samples = lambda *a: replace(list_samples(*a), protocols=protocols)  # type: ignore[method-assign]
    write_finished_set(adapter, str(tmp_path / "set"))
    assert "Small 2 1 2 to 3 all" in text_of(inspect(str(tmp_path / "set")))


def test_damage_is_a_sentence(crop_set: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(crop_set, tmp_path / "crops"))
    path = out / index_name(0, "000001")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"v0/000001\.parquet is not the index .* verify"):
        inspect(str(out))
    (out / MANIFEST).unlink()
    with pytest.raises(UserError, match="no shard set at"):
        inspect(str(out))


def test_shares_and_shapes_of_boxes() -> None:
    boxes = [(0, 0, 10, 10), (-10, 0, 10, 10), (500, 0, 510, 10), (3, 0, 3, 10)]
    record = annotation(*(Person(box=box) for box in boxes), Person(box=(0, 0, 9, 9), ignore=True))
    persons = annotated_persons([AnnotatedSample(Place(0, 0), record)])
    np.testing.assert_array_equal([one.inside for one in persons], [1, 0.5, 0, np.nan])
    np.testing.assert_array_equal([one.aspect for one in persons], [1, 0.5, 1, np.nan])
    assert [one.height for one in persons] == [10, 10, 10, 10]
