"""verify: no flipped bit, lost, doubled, swapped or foreign piece of a shard set escapes it."""

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeAdapter, fake_crops, fake_scenes
from finished_set import files, write_finished_set

from pipeline.errors import UserError
from pipeline.shards import (
    INDEX_SCHEMA,
    MANIFEST,
    OK,
    PROTOCOL_SCHEMA,
    QUARANTINE,
    Manifest,
    Shard,
    ShardSet,
    index_name,
    parquet_bytes,
    protocol_name,
    sha256,
    tar_name,
)
from pipeline.stores.store import Location
from sharding import cluster
from sharding.__main__ import main
from sharding.tar import TarWriter
from sharding.upkeep.shard_check import SHOWN, ShardCheck
from sharding.upkeep.verify import verify

FLIPS = 200


def crops() -> FakeAdapter:
    adapter = fake_crops(9, 3)
    adapter.images["0005"] = adapter.images["0005"][:200]
    return adapter


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants of two shards with one quarantined sample."""
    out = tmp_path_factory.mktemp("whole") / "crops"
    canvas = {"size": (64, 48), "variants": 2}
    write_finished_set(crops(), str(out), shard_crops=5, group=2, canvas=canvas)
    add_protocol(out)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "crops"))


def problems(out: Path) -> list[str]:
    """What verify says, or the manifest's own refusal."""
    try:
        return verify(str(out)).problems
    except UserError as error:
        return [str(error)]


def replace_manifest(out: Path, **update: object) -> None:
    (out / MANIFEST).write_bytes(manifest_of(out).model_copy(update=update).to_json())


def manifest_of(out: Path) -> Manifest:
    return ShardSet(str(out)).manifest


def replace_shard(out: Path, number: int, **update: object) -> None:
    shards = list(manifest_of(out).shards)
    shards[number] = replace(shards[number], **update)
    replace_manifest(out, shards=tuple(shards))


def add_protocol(out: Path, **changes: object) -> None:
    """A protocol of one query over all samples."""
    keys = pq.read_table(out / index_name(0, "000000"))["key"].to_pylist()
    row = {"query": "q", "key": keys[0], "box": (0, 0, 1, 1), "identity": "train:0"}
    row |= {"gallery": keys, "positives": [{"key": keys[1], "box": (0, 0, 1, 1)}], **changes}
    data = parquet_bytes(pa.Table.from_pylist([row], PROTOCOL_SCHEMA))
    Location(str(out / protocol_name("All"))).write(data)
    replace_manifest(out, protocols={"All": sha256(data)})


def test_a_whole_set_is_whole_wherever_its_shards_are_checked(whole: Path) -> None:
    assert problems(whole) == []
    with ProcessPoolExecutor(1) as elsewhere:
        assert verify(str(whole), elsewhere.map).problems == []


class Elsewhere:
    """Workers in another folder than whoever typed the command."""

    def map(
        self, function: Callable[[ShardCheck], list[str]], checks: Iterable[ShardCheck]
    ) -> Iterator[list[str]]:
        for check in checks:
            with chdir("/"):
                found = function(check)
            yield found


def test_a_relative_url_means_the_same_set_to_all_workers(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole.parent)
    monkeypatch.setattr(cluster, "ray_session", lambda workers: nullcontext(Elsewhere()))
    with pytest.raises(SystemExit) as ended:
        main(["verify", whole.name, "--workers", "2"])
    assert ended.value.code == 0, capsys.readouterr().out


def test_a_worker_that_does_not_see_the_set_calls_nothing_damaged(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole.parent)
    with pytest.raises(OSError, match=rf"crops/{MANIFEST} is not seen from"):
        verify(whole.name, Elsewhere().map)


def test_every_flipped_bit_of_every_file_is_found(whole: Path, copy: Path) -> None:
    draws = random.Random(0)
    names = sorted(files(whole))
    missed = []
    for turn in range(FLIPS):
        path = copy / names[turn % len(names)]
        data = path.read_bytes()
        place, bit = draws.randrange(len(data)), draws.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        if not any(path.name in problem for problem in problems(copy)):
            missed.append((path.name, place, bit))
        path.write_bytes(data)
    assert missed == []
    assert problems(copy) == []


def swap(out: Path, *names: str) -> None:
    """Two shards exchange tars and indexes."""
    for name in (tar_name(0, "{}"), index_name(0, "{}")):
        first, second = (out / name.format(one) for one in names)
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)


def double(out: Path) -> None:
    """A shard once more under another name, manifest and all."""
    manifest = manifest_of(out)
    added = []
    for variant in range(2):
        for name in (tar_name, index_name):
            shutil.copy(out / name(variant, "000001"), out / name(variant, "000009"))
        (shard,) = (s for s in manifest.shards if (s.variant, s.name) == (variant, "000001"))
        added.append(replace(shard, name="000009"))
    replace_manifest(out, shards=(*manifest.shards, *added))


def drop_a_sample(out: Path, number: int = 0) -> Shard:
    """Tar and index of a shard rewritten consistently without one of its samples."""
    shard = manifest_of(out).shards[number]
    index, tar = out / index_name(0, shard.name), out / tar_name(0, shard.name)
    data, table = tar.read_bytes(), pq.read_table(index)
    rows = [row for row in table.to_pylist() if row["status"] == OK][1:]
    with TarWriter(Location(str(tar))) as new:
        for row in rows:
            for member, ending in (("image", row["image_type"]), ("json", "json")):
                start = row[f"{member}_offset"]
                part = data[start : start + row[f"{member}_size"]]
                row[f"{member}_offset"] = new.add(f"{row['key']}.{ending}", part)
        new.publish()
    metadata = {**table.schema.metadata, b"tar_bytes": str(new.size), b"tar_sha256": new.sha256}
    written = parquet_bytes(pa.Table.from_pylist(rows, INDEX_SCHEMA.with_metadata(metadata)))
    index.write_bytes(written)
    update = {"tar_bytes": new.size, "tar_sha256": new.sha256, "index_sha256": sha256(written)}
    return replace(shard, **update, planned=len(rows), ok=len(rows))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "shards swapped": (lambda out: swap(out, "000000", "000001"), "v0/000001.parquet: sha256"),
    "shard copied": (
        lambda out: shutil.copy(out / tar_name(0, "000000"), out / tar_name(0, "000007")),
        "v0/000007.tar: does not belong",
    ),
    "shard doubled": (double, "planned 2 times"),
    "shard named twice": (
        lambda out: replace_manifest(out, shards=2 * manifest_of(out).shards),
        "names a shard twice",
    ),
    "sample dropped": (drop_a_sample, "v0/000000.parquet: sha256"),
    "tar lost": (lambda out: (out / tar_name(1, "000001")).unlink(), "v1/000001.tar: missing"),
    "index lost": (lambda out: (out / index_name(0, "000001")).unlink(), "000001.parquet: missing"),
    "quarantine lost": (lambda out: (out / QUARANTINE).unlink(), f"{QUARANTINE}: missing"),
    "quarantine emptied": (
        lambda out: (
            (out / QUARANTINE).write_bytes(empty := parquet_bytes(INDEX_SCHEMA.empty_table())),
            replace_manifest(out, quarantine_sha256=sha256(empty)),
        ),
        "not the quarantined rows",
    ),
    "foreign file": (lambda out: (out / "shards/v0/notes").write_text("hi"), "v0/notes: does not"),
    "protocol lost": (lambda out: (out / protocol_name("All")).unlink(), "All.parquet: missing"),
    "unknown query": (lambda out: add_protocol(out, key="fake/train/x"), "key 'fake/train/x' is no"),
    "unknown gallery": (lambda out: add_protocol(out, gallery=["x"]), "gallery 'x' is no sample"),
    "unknown positive": (
        lambda out: add_protocol(out, positives=[{"key": "x", "box": (0, 0, 1, 1)}]),
        "positives 'x' is no sample",
    ),
    "other labels": (lambda out: replace_manifest(out, domain="mars"), "domain is 'fake', and 'mars'"),
    "other settings": (
        lambda out: replace_manifest(out, settings={**manifest_of(out).settings, "seed": 7}),
        "settings is not that of the plan",
    ),
    "other plan": (lambda out: replace_manifest(out, plan_hash="0" * 64), "another plan"),
    "other rules": (lambda out: replace_manifest(out, excluded={}), "12 samples in the source"),
    "fewer variants": (lambda out: replace_manifest(out, variants=1), "the shards of 1 variant"),
    "orphan": (lambda out: replace_manifest(out, generation=3), "generation 3 of parent None"),
    "persons": (lambda out: replace_manifest(out, persons=99), "persons is not what"),
    "identities": (lambda out: replace_manifest(out, identities=()), "identities is not what"),
    "source samples": (lambda out: replace_manifest(out, source_samples=13), "13 samples in the"),
    "counts of a shard": (lambda out: replace_shard(out, 1, ok=9), "(planned, ok, quarantined"),
    "shards changed places": (
        lambda out: replace_manifest(out, shards=tuple(manifest_of(out).shards[n] for n in (0, 1, 3, 2))),
        "variant 1 has other shards",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named(kind: str, copy: Path) -> None:
    damage, complaint = DAMAGE[kind]
    damage(copy)
    assert complaint in "\n".join(problems(copy))


def test_a_sample_dropped_everywhere_in_one_shard_contradicts_the_plan(copy: Path) -> None:
    """A consistent lie about one shard contradicts the plan and the other variant."""
    shard = drop_a_sample(copy)
    replace_shard(copy, 0, **asdict(shard))
    found = "\n".join(problems(copy))
    assert "samples is not that of the plan" in found
    assert "v1/000000.parquet: other samples than in variant 0" in found
    assert "samples in the source" in found


def test_the_manifest_refuses_a_byte_that_it_was_not_written_with(copy: Path) -> None:
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace('"licence": "none"', '"licence": "mine"'))
    with pytest.raises(UserError, match="damaged or was edited"):
        manifest_of(copy)
    assert json.loads(text)["digest"] == sha256(text.encode().rpartition(b',\n "digest"')[0])


def test_a_wholly_broken_shard_stays_readable(tmp_path: Path) -> None:
    write_finished_set(fake_scenes(3 * SHOWN), str(tmp_path / "scenes"))
    replace_manifest(tmp_path / "scenes", split="val")
    found = problems(tmp_path / "scenes")
    assert len([problem for problem in found if "split is 'train'" in problem]) == SHOWN
    assert f"... and {2 * SHOWN} more" in found


def add_supplement(out: Path, key: str | None = None) -> None:
    """A shard that holds what was quarantined, read on a second try; `key`: another sample instead."""
    adapter = fake_crops(9, 3)
    (bad,) = pq.read_table(out / QUARANTINE)["key"].to_pylist()
    adapter.samples = [s for s in adapter.samples if s.key == (key or bad)]
    other, old = out.parent / "other", manifest_of(out)
    canvas = {"size": (64, 48), "variants": 2}
    made = write_finished_set(adapter, str(other), shard_crops=5, group=2, canvas=canvas)
    added = []
    for shard in made.shards:
        index = pq.read_table(other / index_name(shard.variant, shard.name))
        metadata = {**index.schema.metadata, b"plan_hash": old.plan_hash}
        data = parquet_bytes(index.replace_schema_metadata(metadata))
        (out / index_name(shard.variant, "s000000")).write_bytes(data)
        shutil.copy(
            other / tar_name(shard.variant, shard.name), out / tar_name(shard.variant, "s000000")
        )
        new = {"name": "s000000", "index_sha256": sha256(data), "supplement": True}
        added.append(replace(shard, **new))
    empty = parquet_bytes(INDEX_SCHEMA.empty_table())
    (out / QUARANTINE).write_bytes(empty)
    sums = {"samples": old.samples + 1, "persons": old.persons + 1, "quarantined": 0}
    replace_manifest(out, shards=(*old.shards, *added), quarantine_sha256=sha256(empty), **sums)


def test_what_a_supplement_holds_is_no_longer_quarantined(copy: Path) -> None:
    add_supplement(copy)
    assert problems(copy) == []
    replace_manifest(copy, quarantined=1)
    assert problems(copy) == [
        f"{MANIFEST}: quarantined is not what the indexes add up to",
    ]


def test_a_supplement_may_only_hold_what_was_quarantined(copy: Path) -> None:
    add_supplement(copy, key="fake/train/0001")
    found = "\n".join(problems(copy))
    assert "fake/train/0001: in a supplement, but not quarantined in a planned shard" in found
