"""One shard: the same bytes each time, nothing half-visible, bad samples accounted for, bad luck retried."""

import io
import json
import tarfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from fakes import FakeAdapter, fake_crops, fake_scenes, jpeg
from fsspec.implementations.memory import MemoryFileSystem
from shardset import picture

from pipeline.annotation import Annotation
from pipeline.rendering.decode import decode
from pipeline.shards import INDEX_SCHEMA, index_name, sha256, tar_name
from pipeline.stores import store
from sharding.canvas import CanvasConfig
from sharding.convert import Conversion
from sharding.datasets import ADAPTERS
from sharding.datasets.base import FaultySample
from sharding.image import CodedImage, Fault, open_image
from sharding.plan import PlanConfig, make_plan
from sharding.source import Source
from sharding.tar import ustar_header
from sharding.writer import ShardJob, ShardResult, TooLarge, write_shard

SMALL = CanvasConfig(size=(96, 64), variants=2)


def job(adapter: FakeAdapter, out: Path, memory: int = 1 << 28, **config: object) -> ShardJob:
    settings = PlanConfig(canvas=SMALL, **config)
    source = Source(str(out.parent))
    plan = make_plan(adapter, "train", adapter.list_samples(source, "train"), settings)
    (shard,) = plan.shards
    conversion = Conversion(adapter, source, "train", settings, plan.variants, memory)
    return ShardJob(conversion, shard, str(out), plan.hash, plan.description())


def counts(job: ShardJob) -> tuple[int, int]:
    """Writes; (ok, quarantined)."""
    result = write_shard(job)
    assert isinstance(result, ShardResult)
    assert result.name == "000000"
    return result.ok, result.quarantined


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(out: Path, variant: int = 0) -> list[dict]:
    return pq.read_table(out / index_name(variant, "000000")).to_pylist()


def read_stock(out: Path, variant: int = 0) -> list[dict]:
    return list(webdataset.WebDataset(str(out / tar_name(variant, "000000")), shardshuffle=False))


def test_scenes_pass_through_and_the_index_says_where_they_lie(tmp_path: Path) -> None:
    scenes = fake_scenes(5)
    assert counts(job(scenes, tmp_path / "out")) == (5, 0)
    tar = (tmp_path / "out" / tar_name(0, "000000")).read_bytes()
    samples = read_stock(tmp_path / "out")
    assert [sample["__key__"] for sample in samples] == [
        row["key"] for row in rows(tmp_path / "out")
    ]
    for sample, row in zip(samples, rows(tmp_path / "out"), strict=True):
        source = scenes.images[row["origin"]]
        assert sample["jpg"] == source
        assert row["source_sha256"] == sha256(source)
        assert tar[row["image_offset"] :][: row["image_size"]] == source
        assert tar[row["json_offset"] :][: row["json_size"]] == sample["json"]
        assert (row["width"], row["height"], row["persons"], row["ignored"]) == (80, 48, 1, 1)
        annotation = Annotation.from_json(sample["json"])
        assert annotation.persons == scenes.samples[0].persons
        assert (annotation.source, annotation.task) == (row["origin"], "detection")


def test_an_annotation_names_its_version(tmp_path: Path) -> None:
    write_shard(job(fake_scenes(1), tmp_path / "out"))
    (sample,) = read_stock(tmp_path / "out")
    record = json.loads(sample["json"])
    assert record.pop("version") == 1
    with pytest.raises(ValueError, match="version"):
        Annotation.from_json(json.dumps(record).encode())


def test_variants_hold_the_same_crops_in_other_places(tmp_path: Path) -> None:
    crops = fake_crops(6, 2)
    write_shard(job(crops, tmp_path / "out", group=2))
    pairs = list(zip(read_stock(tmp_path / "out", 0), read_stock(tmp_path / "out", 1), strict=True))
    assert len(pairs) == 6
    for first, second in pairs:
        before, after = (Annotation.from_json(sample["json"]) for sample in (first, second))
        assert first["__key__"] == second["__key__"]
        assert before.persons[0].identity == after.persons[0].identity
        assert before.persons[0].box != after.persons[0].box
        assert (before.width, before.height, before.crop_size) == (64, 96, (32, 64))
        assert before.canvas is not None
        assert before.canvas.variant == 0
    assert [row["run"] for row in rows(tmp_path / "out")] == [
        row["run"] for row in rows(tmp_path / "out", 1)
    ]


def test_bytes_are_the_same_each_time_and_carry_no_time_or_owner(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_shard(job(fake_crops(6, 2), tmp_path / name))
    assert files(tmp_path / "first") == files(tmp_path / "second")
    with tarfile.open(tmp_path / "first" / tar_name(0, "000000")) as tar:
        for member in tar:
            assert member.isreg()
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")


def test_index_names_its_tar_and_plan(tmp_path: Path) -> None:
    work = job(fake_scenes(3), tmp_path / "out")
    write_shard(work)
    schema = pq.read_schema(tmp_path / "out" / index_name(0, "000000"))
    tar = (tmp_path / "out" / tar_name(0, "000000")).read_bytes()
    assert schema.remove_metadata() == INDEX_SCHEMA
    assert schema.metadata[b"plan_hash"].decode() == work.plan_hash
    assert schema.metadata[b"tar_sha256"].decode() == sha256(tar)
    assert int(schema.metadata[b"tar_bytes"]) == len(tar)
    assert json.loads(schema.metadata[b"plan"])["settings"]["seed"] == 0


def test_bad_samples_are_quarantined_with_reason_and_origin(tmp_path: Path) -> None:
    scenes = fake_scenes(7)
    scenes.images["0000"] = scenes.images["0000"][:200]
    scenes.images["0001"] = b"<html>not found</html>"
    scenes.images["0002"] = jpeg(50, 80)
    scenes.images["0003"] = jpeg(48, 80, 3)[:-300] + b"\xff\xd9"
    scenes.faulty = (
        FaultySample("fake/train/0098", "0098.json", "damaged label file"),
        FaultySample("fake/train/0099", "0099"),
    )
    assert counts(job(scenes, tmp_path / "out")) == (3, 6)
    reasons = {row["origin"]: row["reason"] for row in rows(tmp_path / "out") if row["reason"]}
    assert reasons["0000"] == "truncated JPEG"
    assert "neither JPEG nor PNG" in reasons["0001"]
    assert reasons["0002"] == "annotated as 80x48, is 80x50"
    assert "JPEG" in reasons["0003"]
    assert reasons["0098.json"] == "damaged label file"
    assert reasons["0099"] == "missing from the source"
    assert len(rows(tmp_path / "out")) == 9
    assert {sample["__key__"][-4:] for sample in read_stock(tmp_path / "out")} == {
        "0004",
        "0005",
        "0006",
    }


def test_check_header_does_not_decode(tmp_path: Path) -> None:
    scenes = fake_scenes(2)
    scenes.images["0000"] = scenes.images["0000"][:-300] + b"\xff\xd9"
    assert counts(job(scenes, tmp_path / "full")) == (1, 1)
    assert counts(job(scenes, tmp_path / "header", check="header")) == (2, 0)


def test_a_broken_crop_is_quarantined_in_every_variant(tmp_path: Path) -> None:
    crops = fake_crops(4, 2)
    crops.images["0002"] = b"broken"
    write_shard(job(crops, tmp_path / "out"))
    for variant in (0, 1):
        assert [r["origin"] for r in rows(tmp_path / "out", variant) if r["status"] != "ok"] == [
            "0002"
        ]


class Unlucky(FakeAdapter):
    """Reads of one sample fail for `failures` times."""

    failures = 0
    error: Exception = TimeoutError("store does not answer")

    def read(self, source: Source, locator: str) -> bytes:
        if locator == "0003" and self.failures > 0:
            self.failures -= 1
            raise self.error
        return super().read(source, locator)


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> Unlucky:
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.001)
    scenes = fake_scenes(5)
    return Unlucky("detection", scenes.images, scenes.samples)


def test_bad_luck_is_retried_and_never_quarantined(tmp_path: Path, unlucky: Unlucky) -> None:
    unlucky.failures = 2
    assert counts(job(unlucky, tmp_path / "out")) == (5, 0)


def test_lasting_bad_luck_leaves_nothing_behind(tmp_path: Path, unlucky: Unlucky) -> None:
    unlucky.failures = 10**6
    with pytest.raises(TimeoutError):
        write_shard(job(unlucky, tmp_path / "out"))
    assert files(tmp_path / "out") == {}


def test_a_few_vanished_files_are_quarantined_and_a_vanished_source_is_not(
    tmp_path: Path, unlucky: Unlucky
) -> None:
    unlucky.failures, unlucky.error = 1, FileNotFoundError("0003")
    with pytest.raises(OSError, match="1 of the shard's 5 images have gone"):
        write_shard(job(unlucky, tmp_path / "out"))
    assert files(tmp_path / "out") == {}
    unlucky.failures = 1
    assert counts(job(unlucky, tmp_path / "out", max_missing=0.2)) == (4, 1)
    unlucky.failures = 1
    there = job(unlucky, tmp_path / "out")
    gone = replace(there.conversion, source=Source(str(tmp_path / "unmounted")))
    unmounted = replace(there, conversion=gone)
    with pytest.raises(OSError, match="has gone"):
        write_shard(unmounted)


def test_a_programming_error_is_not_a_data_error(tmp_path: Path, unlucky: Unlucky) -> None:
    unlucky.failures, unlucky.error = 1, TypeError("a bug")
    with pytest.raises(TypeError):
        write_shard(job(unlucky, tmp_path / "out"))


def test_names_beyond_100_bytes_are_read_back_by_any_tar(tmp_path: Path) -> None:
    name = "dataset/train/" + "x" * 86 + ".json"
    assert len(name) == 105
    archive = ustar_header(name, 3) + b"abc".ljust(512, b"\0") + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert [member.name for member in tar] == [name]
    with pytest.raises(ValueError):
        ustar_header("x" * 101, 0)


def png(height: int, width: int, seed: int = 0) -> bytes:
    return cv2.imencode(".png", picture(height, width, seed))[1].tobytes()


def test_recoded_scenes_are_smaller_and_their_boxes_go_with_them(tmp_path: Path) -> None:
    scenes = fake_scenes(3)
    scenes.images["0000"], scenes.images["0001"] = png(48, 80), png(48, 80)[:-300]
    assert counts(job(scenes, tmp_path / "out", recode="jpeg:90", max_side=64)) == (2, 1)
    for sample in read_stock(tmp_path / "out"):
        annotation = Annotation.from_json(sample["json"])
        assert decode(sample["jpg"], "jpg").shape == (38, 64, 3)
        assert (annotation.width, annotation.height) == (64, 38)
        assert annotation.extra["source_size"] == [80, 48]
        x, y = 64 / 80, 38 / 48
        assert annotation.persons[0].box == pytest.approx((-5 * x, 3 * y, 20 * x, 60 * y))
        assert annotation.persons[1].ignore


def test_recoding_leaves_a_jpeg_that_is_small_enough_as_it_is(tmp_path: Path) -> None:
    scenes = fake_scenes(2)
    scenes.images["0000"] = png(48, 80)
    write_shard(job(scenes, tmp_path / "out", recode="jpeg:90"))
    images = {row["origin"]: row for row in rows(tmp_path / "out")}
    assert images["0001"]["image_size"] == len(scenes.images["0001"])
    assert images["0000"]["image_type"] == "jpg"
    assert images["0000"]["source_sha256"] == sha256(scenes.images["0000"])


def test_images_smaller_than_asked_for_are_quarantined_where_the_release_does_not_say(
    tmp_path: Path,
) -> None:
    crops = fake_crops(4, 2)
    crops.images["0002"] = jpeg(63, 32)
    assert counts(job(crops, tmp_path / "out", filters={"min_size": (64, 32)})) == (3, 1)
    (reason,) = [row["reason"] for row in rows(tmp_path / "out") if row["reason"]]
    assert reason == "32x63 pixels, smaller than asked for by filters.min_size"


def test_a_shard_with_an_image_too_large_for_its_memory_says_what_it_needs(tmp_path: Path) -> None:
    crops = fake_crops(3, 2)
    crops.images["0001"] = jpeg(400, 500)
    small = write_shard(job(crops, tmp_path / "out", memory=300_000))
    assert isinstance(small, TooLarge)
    assert 600_000 < small.needed < 1_500_000
    assert files(tmp_path / "out") == {}
    assert counts(job(crops, tmp_path / "out", memory=small.needed)) == (3, 0)


def test_a_baseline_jpeg_is_checked_in_a_fraction_of_its_pixels_and_a_progressive_one_is_not() -> (
    None
):
    pixels = picture(800, 1200, 0)
    progressive = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    baseline, held = open_image(jpeg(800, 1200)), open_image(progressive)
    assert isinstance(baseline, CodedImage)
    assert isinstance(held, CodedImage)
    assert baseline.check_bytes() < 800 * 1200 * 3 / 60
    # All coefficients of three components, two of them at half the height and width, two bytes each.
    assert held.check_bytes() - baseline.check_bytes() == 800 * 1200 * 3
    assert held.check() is None
    assert held.decode_bytes() > held.check_bytes()


def test_the_check_finds_what_decoding_finds() -> None:
    """A hundred damaged JPEGs: reading every bit is enough, making every pixel is not needed."""
    rng = np.random.default_rng(0)
    faults = 0
    for seed in range(100):
        data = bytearray(jpeg(48, 80, seed % 7))
        data[int(rng.integers(300, len(data)))] ^= 1 << int(rng.integers(8))
        image = open_image(bytes(data))
        if isinstance(image, CodedImage):
            decoded = image.decode()
            assert isinstance(decoded, Fault) == (image.check() is not None)
            faults += isinstance(decoded, Fault)
    assert faults > 20


class Ahead(FakeAdapter):
    """Remembers which locators were read, and by which thread."""

    def read(self, source: Source, locator: str) -> bytes:
        threads.add(threading.get_ident())
        return super().read(source, locator)


threads: set[int] = set()


def test_a_source_in_a_store_is_read_ahead_and_gives_the_same_bytes(tmp_path: Path) -> None:
    scenes = fake_scenes(40)
    local = job(scenes, tmp_path / "local")
    write_shard(local)
    ahead = Ahead("detection", scenes.images, scenes.samples)
    store = replace(local.conversion, adapter=ahead, source=Source("s3://bucket/scenes"))
    write_shard(replace(local, conversion=store, out=str(tmp_path / "store")))
    assert len(threads) > 1
    assert files(tmp_path / "store") == files(tmp_path / "local")


def test_a_store_that_fails_is_asked_as_often_for_a_shard_as_for_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def fail(fs: object, path: str, **limits: int) -> bytes:
        asked[path] += 1
        raise TimeoutError("store does not answer")

    monkeypatch.setattr(store, "FIRST_WAIT_S", 0)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    monkeypatch.setattr(MemoryFileSystem, "size", lambda fs, path: 9)
    local = job(fake_scenes(40), tmp_path / "out")
    reading = replace(local.conversion, source=Source("memory://scenes"), adapter=ADAPTERS["ecp"])
    with pytest.raises(TimeoutError):
        write_shard(replace(local, conversion=reading))
    assert set(asked.values()) == {store.STORE_ATTEMPTS}


def test_a_rescue_keeps_what_can_be_used_and_writes_nothing_otherwise(tmp_path: Path) -> None:
    scenes = fake_scenes(3)
    scenes.images["0001"] = b"broken"
    rescue = replace(job(scenes, tmp_path / "out"), rescue=True)
    assert counts(rescue) == (2, 0)
    assert len(rows(tmp_path / "out")) == 2
    scenes.images = dict.fromkeys(scenes.images, b"broken")
    assert counts(replace(rescue, out=str(tmp_path / "nothing"))) == (0, 0)
    assert files(tmp_path / "nothing") == {}
