"""forget: whole samples go, nothing else moves, and no kill leaves a set that is neither old nor new."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeAdapter, fake_crops
from finished_set import files, write_finished_set
from object_store import s3_environment, s3_server

from pipeline.errors import UserError
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.shards import (
    FORGOTTEN,
    MANIFEST,
    PROTOCOL_SCHEMA,
    QUARANTINE,
    Manifest,
    ShardSet,
    index_name,
    parquet_bytes,
    protocol_name,
    sha256,
    tar_name,
)
from pipeline.stores.replacement import LocalReplacement
from pipeline.stores.store import Location
from pipeline.stream import Stream
from sharding.datasets.base import FaultySample
from sharding.filters import read_names
from sharding.upkeep.forget import forget
from sharding.upkeep.verify import verify

GONE = "train:2"
SETTINGS: dict[str, Any] = {
    "shard_crops": 8,
    "group": 2,
    "canvas": {"size": (64, 48), "variants": 2},
}


def crops() -> FakeAdapter:
    """36 crops of 5 persons and unknown ones, in shards of 8; two of them are damaged."""
    adapter = fake_crops(36, 5)
    for name in ("0002", "0007"):
        adapter.images[name] = adapter.images[name][:200]
    return adapter


def write_protocol(out: str, keys: list[str]) -> dict[str, str]:
    """Queries for three people, over a gallery of all samples; hashes for the manifest."""
    box = (0.0, 0.0, 9.0, 9.0)
    rows = [
        {
            "query": f"q{number}",
            "key": keys[number],
            "box": box,
            "identity": f"train:{number}",
            "gallery": keys if number else None,
            "positives": [{"key": keys[number + 6], "box": box}, {"key": keys[9], "box": box}],
        }
        for number in range(3)
    ]
    data = parquet_bytes(pa.Table.from_pylist(rows, PROTOCOL_SCHEMA))
    Location(out).child(protocol_name("All")).write(data)
    return {"All": sha256(data)}


def write_crops(out: str, **settings: object) -> Manifest:
    manifest = write_finished_set(crops(), out, **{**SETTINGS, **settings})
    keys = [f"fake/train/{number:04d}" for number in range(36)]
    manifest = manifest.model_copy(update={"protocols": write_protocol(out, keys)})
    Location(out).child(MANIFEST).write(manifest.to_json())
    return manifest


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("original") / "crops"
    write_crops(str(out))
    return out


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "crops"))


KEYS = ["fake/train/0007", "fake/train/0009"]
"""One quarantined, and one of train:3, the positive of every query."""


def columns(folder: Path) -> Iterator[str]:
    """Every string that stands in a parquet file or, written out, anywhere else."""
    for name, data in files(folder).items():
        if name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
            yield from (repr(row) for row in table.to_pylist())
            for column in table.columns:
                dictionaries = (c.flatten() for c in column.chunks if pa.types.is_list(c.type))
                yield from (
                    repr(values.dictionary.to_pylist())
                    for values in dictionaries
                    if pa.types.is_dictionary(values.type)
                )
        else:
            yield data.decode("latin-1")


def test_nothing_of_whom_was_forgotten_is_left_and_the_rest_is_whole(copy: Path) -> None:
    before = ShardSet(str(copy))
    parent, old = before.manifest_sha256, before.manifest
    kept = {key: members(copy, key) for key in ("fake/train/0000", "fake/train/0035")}
    result = forget(str(copy), {GONE}, set(KEYS))
    assert verify(str(copy)).problems == []
    child = ShardSet(str(copy)).manifest
    assert (child.generation, child.parent) == (1, parent)
    assert child == result.manifest
    of_person = {f"fake/train/{number:04d}" for number in range(2, 36, 6)}
    assert child.samples == old.samples - 5 - 1
    assert (old.quarantined, child.quarantined) == (2, 0)
    assert child.forgotten == result.samples == len(of_person) + 2
    assert child.identities == tuple(one for one in old.identities if one != GONE)
    for name in (GONE, *KEYS, *of_person):
        assert not any(name in text for text in columns(copy))
    assert {key: members(copy, key) for key in kept} == kept
    assert GONE not in "\n".join(result.lines({}))


def members(out: Path, key: str) -> list[bytes]:
    """A sample's coded images and annotations, of all variants."""
    found = []
    for shard in ShardSet(str(out)).manifest.shards:
        tar = (out / tar_name(shard.variant, shard.name)).read_bytes()
        for row in pq.read_table(out / index_name(shard.variant, shard.name)).to_pylist():
            if row["key"] == key:
                for member in ("image", "json"):
                    start = row[f"{member}_offset"]
                    found.append(tar[start : start + row[f"{member}_size"]])
    return found


def test_only_shards_that_hold_them_are_rewritten(copy: Path) -> None:
    before = files(copy)
    forget(str(copy), set(), {KEYS[1]})
    after = files(copy)
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    (shard,) = {Path(name).stem for name in gone}
    assert {Path(name).stem for name in new} == {f"{shard}-g1"}
    assert len(gone) == len(new) == 4
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed == {MANIFEST, protocol_name("All")}


def test_a_protocol_loses_queries_gallery_samples_and_positives(copy: Path) -> None:
    forget(str(copy), {GONE}, set(KEYS))
    rows = pq.read_table(copy / protocol_name("All")).to_pylist()
    assert [row["query"] for row in rows] == ["q0", "q1"]
    gone = {f"fake/train/{number:04d}" for number in range(2, 36, 6)} | set(KEYS)
    assert rows[0]["gallery"] is None
    assert rows[1]["gallery"] == [
        key for key in (f"fake/train/{n:04d}" for n in range(36)) if key not in gone
    ]
    assert [p["key"] for p in rows[0]["positives"]] == ["fake/train/0006"]
    assert rows[1]["positives"] == []


def test_a_second_generation_follows_the_first(copy: Path) -> None:
    forget(str(copy), {GONE}, set())
    parent = ShardSet(str(copy)).manifest_sha256
    forget(str(copy), {"train:1"}, set())
    child = ShardSet(str(copy)).manifest
    assert (child.generation, child.parent) == (2, parent)
    assert {s.name.partition("-")[2] for s in child.shards} <= {"", "g1", "g2"}
    assert verify(str(copy)).problems == []


def test_everybody_can_be_forgotten(copy: Path) -> None:
    keys = {f"fake/train/{number:04d}" for number in range(36)}
    forget(str(copy), set(), keys)
    assert verify(str(copy)).problems == []
    manifest = ShardSet(str(copy)).manifest
    assert (manifest.samples, manifest.quarantined, manifest.forgotten) == (0, 0, 36)


def open_stream(url: str) -> Stream:
    config = StreamConfig(
        canvases=(MixtureEntry(shards=url, weight=1),),
        canvas_batch=4,
        canvas_group=2,
        canvas_size=(64, 48),
        max_bad_share=1.0,
    )
    return Stream.open(config)


def stream_keys(url: str) -> list[str]:
    stream = open_stream(url)
    with stream.batches(0, 18) as batches:
        keys = [key for batch in batches if batch.canvases for key in batch.canvases.keys]
    assert not stream.ledger.bad
    return keys


def test_the_stream_replaces_them_and_moves_nobody_else(copy: Path) -> None:
    wanted = stream_keys(str(copy))
    forget(str(copy), {GONE}, set(KEYS))
    got = stream_keys(str(copy))
    gone = {f"fake/train/{number:04d}" for number in range(2, 36, 6)} | set(KEYS)
    assert [p for p in range(len(wanted)) if wanted[p] != got[p]] == [
        p for p, key in enumerate(wanted) if key in gone
    ]
    assert sum(key in gone for key in wanted) >= 12
    assert not gone & set(got)


def test_a_run_may_go_on_with_a_child_generation(copy: Path) -> None:
    """To the stream they are one set, so the digest that a checkpoint holds stays right."""
    first = ShardSet(str(copy)).manifest_sha256
    digest = open_stream(str(copy)).digest
    for keys in (KEYS[:1], KEYS[1:]):
        forget(str(copy), set(), set(keys))
        assert ShardSet(str(copy)).root_sha256 == first
        assert open_stream(str(copy)).digest == digest


class Killed(BaseException):
    """Not to be caught by anything that handles errors."""


def test_a_run_killed_at_any_moment_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, undisturbed = tmp_path / "original", tmp_path / "undisturbed"
    write_crops(str(original), shard_crops=18, canvas={"size": (64, 48), "variants": 1})
    shutil.copytree(original, undisturbed)
    forget(str(undisturbed), {GONE}, set(KEYS))
    old, forgotten = files(original), files(undisturbed)
    left = [0]

    def count() -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    publish, remove = LocalReplacement.publish, Location.remove
    monkeypatch.setattr(LocalReplacement, "publish", lambda self: (count(), publish(self))[1])
    monkeypatch.setattr(Location, "remove", lambda self: (count(), remove(self))[1])
    outcomes = set()
    for moment in range(100):
        out = Path(shutil.copytree(original, tmp_path / str(moment)))
        left[0] = moment
        try:
            forget(str(out), {GONE}, set(KEYS))
        except Killed:
            now = files(out)
            committed = now[MANIFEST] != old[MANIFEST]
            assert committed or old.items() <= now.items(), "the old generation is whole"
            assert not committed or now[MANIFEST] == forgotten[MANIFEST]
            outcomes.add(committed)
            left[0] = -1
            lines = forget(str(out), {GONE}, set(KEYS)).lines(
                dict.fromkeys([GONE, *KEYS], "a file")
            )
            assert ("3 of 3 names are not in it" in lines[0]) == committed
            assert "files of other generations removed" in lines[-1]
        else:
            break
        assert files(out) == forgotten
    assert outcomes == {False, True}


def test_unknown_names_are_told_by_where_they_stand(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(f"# of the letter of May\n{GONE}\n\n  train:77  \n")
    listed = read_names(str(tmp_path / "ids.txt"))
    assert list(listed) == [GONE, "train:77"]
    lines = forget(str(copy), listed.keys(), ()).lines(listed)
    assert lines[0] == f"!! fake train: 1 of 2 names are not in it: {tmp_path}/ids.txt:4"
    assert "6 samples in" in lines[1]
    with pytest.raises(
        UserError, match=r"none of the 2 names is in .*forgotten before \(it is gen"
    ):
        forget(str(copy), listed.keys(), ())
    with pytest.raises(UserError, match=r"cannot read the names in .*no\.txt"):
        read_names(str(tmp_path / "no.txt"))


def test_damage_is_not_blessed(copy: Path) -> None:
    before = {**files(copy)}
    shard = next(s for s in ShardSet(str(copy)).manifest.shards if s.variant == 1)
    path = copy / tar_name(1, shard.name)
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"v1/{shard.name}\.tar is not the file that .*verify"):
        forget(str(copy), set(ShardSet(str(copy)).manifest.identities), ())
    assert files(copy)[MANIFEST] == before[MANIFEST]
    assert files(copy)[QUARANTINE] == before[QUARANTINE]


def test_what_a_supplement_shows_is_forgotten_where_it_was_planned_too(tmp_path: Path) -> None:
    """It was missing then, and of what is missing no identity is known."""
    out, first, second = tmp_path / "crops", crops(), crops()
    missing = next(s for s in first.samples if s.key[-4:] == "0002")
    first.samples.remove(missing)
    faulty = (FaultySample(missing.key, missing.origin),)
    write_finished_set(replace(first, faulty=faulty), str(out), **SETTINGS)
    second.images["0002"] = fake_crops(3, 5).images["0002"]
    (person,) = missing.persons
    stranger = (person.model_copy(update={"identity": "train:77"}),)  # shown by no other sample
    add_supplement(out, replace(second, samples=[replace(missing, persons=stranger)]))
    assert verify(str(out)).problems == []
    forget(str(out), {"train:77"}, ())
    assert verify(str(out)).problems == []
    manifest = ShardSet(str(out)).manifest
    assert (manifest.samples, manifest.quarantined, manifest.forgotten) == (34, 1, 1)
    assert not any("fake/train/0002" in text for text in columns(out))
    assert manifest.shards[-1].name == "s000000-g1"


def add_supplement(out: Path, adapter: FakeAdapter) -> None:
    """What `--retry-quarantined` does: a shard of what can be read now."""
    other = out.parent / "other"
    made, old = write_finished_set(adapter, str(other), **SETTINGS), ShardSet(str(out)).manifest
    added = []
    for shard in made.shards:
        variant = shard.variant
        index = pq.read_table(other / index_name(variant, shard.name))
        metadata = {**index.schema.metadata, b"plan_hash": old.plan_hash}
        data = parquet_bytes(index.replace_schema_metadata(metadata))
        (out / index_name(variant, "s000000")).write_bytes(data)
        shutil.copy(other / tar_name(variant, shard.name), out / tar_name(variant, "s000000"))
        new = {"name": "s000000", "index_sha256": sha256(data), "supplement": True}
        added.append(replace(shard, **new))
    quarantine = pq.read_table(out / QUARANTINE)
    recovered = [sample.key for sample in adapter.samples]
    rows = [row for row in quarantine.to_pylist() if row["key"] not in recovered]
    listed = parquet_bytes(pa.Table.from_pylist(rows, quarantine.schema))
    (out / QUARANTINE).write_bytes(listed)
    manifest = old.model_copy(
        update={
            "shards": (*old.shards, *added),
            "samples": old.samples + 1,
            "persons": old.persons + 1,
            "identities": tuple(sorted({*old.identities, *made.identities})),
            "quarantined": len(rows),
            "quarantine_sha256": sha256(listed),
        }
    )
    (out / MANIFEST).write_bytes(manifest.to_json())


def test_a_set_in_an_object_store(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    with s3_server(tmp_path) as port, s3_environment(port):
        write_crops("s3://bucket/crops")
        forget("s3://bucket/crops", {GONE}, set(KEYS))
        assert verify("s3://bucket/crops").problems == []
    assert not list((tmp_path / "bucket").rglob("*.g1"))
    rows = [
        row
        for path in tmp_path.rglob("v1/*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["status"] == FORGOTTEN
    ]
    assert len(rows) == 6
