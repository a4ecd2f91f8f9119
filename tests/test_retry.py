"""Another try for quarantined samples: supplements are added, planned shards stay, the manifest says so."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeAdapter, fake_crops, fake_scenes, jpeg
from finished_set import files

import sharding.output
from pipeline.errors import UserError
from pipeline.samples import SampleReader
from pipeline.shards import MANIFEST, PROTOCOL_SCHEMA, QUARANTINE, Manifest, ShardSet
from pipeline.stores.store import Location
from sharding.__main__ import main
from sharding.canvas import CanvasConfig
from sharding.datasets.base import FaultySample
from sharding.filters import FilterConfig
from sharding.job import write_sets
from sharding.output import finish
from sharding.plan import PlanConfig
from sharding.prepare import prepare
from sharding.recipe import SetRequest, make_request
from sharding.retry import prepare_retry
from sharding.source import Source
from sharding.summary import written_lines
from sharding.upkeep.forget import forget
from sharding.upkeep.verify import verify
from sharding.writer import write_shard

CANVAS = CanvasConfig(size=(96, 64), variants=2)


def request(adapter: FakeAdapter, out: Path, **settings: object) -> SetRequest:
    config = PlanConfig(canvas=CANVAS, max_missing=1, **settings)
    return SetRequest(adapter, Source(str(out.parent)), "train", str(out), config)


def write(one: SetRequest) -> Manifest:
    prepared = prepare(one)
    for job in prepared.jobs():
        write_shard(job)
    return finish(Location(one.out), prepared.plan, one.adapter, prepared.listing)


def retry(one: SetRequest) -> Manifest:
    prepared = prepare_retry(one)
    assert prepared is not None
    for job in prepared.jobs():
        write_shard(job)
    return prepared.finish()


def broken_crops() -> FakeAdapter:
    crops = fake_crops(12, 3)
    for name in ("0002", "0007", "0009"):
        crops.images[name] = b"broken"
    return crops


def mended(crops: FakeAdapter, *names: str) -> FakeAdapter:
    """What is broken is replaced by as many bytes that are not."""
    images = {**crops.images, **{name: jpeg(64, 32, int(name)) for name in names}}
    return replace(crops, images=images)


def fetched_again(crops: FakeAdapter, **images: bytes) -> FakeAdapter:
    """Another source: these have other bytes and another size."""
    samples = [
        replace(sample, size_bytes=len(images[name]))
        if (name := sample.locator) in images
        else sample
        for sample in crops.samples
    ]
    return replace(crops, images={**crops.images, **images}, samples=samples)


def write_again(one: SetRequest) -> Manifest:
    """The job over a set that is finished: it starts no Ray."""
    (outcome,) = write_sets([one])
    assert outcome.error is None
    assert outcome.manifest is not None
    return outcome.manifest


def keys(url: str) -> list[str | None]:
    reader = SampleReader(ShardSet(url))
    return [
        reader.key(shard, slot) for shard, slots in enumerate(reader.slots) for slot in range(slots)
    ]


def test_what_can_be_used_now_is_added_and_the_rest_stays_quarantined(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    before, written = write(request(crops, out, shard_crops=5)), files(out)
    after = retry(request(mended(crops, "0002", "0009"), out, shard_crops=5))
    assert (before.samples, before.quarantined) == (9, 3)
    assert (after.samples, after.quarantined) == (11, 1)
    assert after.source_samples == before.source_samples
    assert [s.name for s in after.shards if s.supplement] == ["s000000", "s000000"]
    assert [row["origin"] for row in pq.read_table(out / QUARANTINE).to_pylist()] == ["0007"]
    untouched = {name for name in written if name.startswith("shards/")}
    assert {name: data for name, data in files(out).items() if name in untouched} == {
        name: written[name] for name in untouched
    }
    assert verify(str(out)).problems == []
    assert len(set(keys(str(out)))) == 11
    assert "2 once quarantined samples in supplement shards; the set no longer equals" in "\n".join(
        written_lines(after, str(out))
    )


def test_a_second_try_goes_on_and_a_rerun_of_the_job_keeps_supplements(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    retry(request(mended(crops, "0002"), out))
    whole = mended(crops, "0002", "0007", "0009")
    last = retry(request(whole, out))
    assert (last.samples, last.quarantined) == (12, 0)
    assert sorted({s.name for s in last.shards if s.supplement}) == ["s000000", "s000001"]
    assert retry(request(whole, out)) == last
    assert write(request(whole, out)) == last
    assert verify(str(out)).problems == []


def test_supplements_of_a_later_generation_make_another_set_for_the_stream(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    forget(str(out), set(), {"fake/train/0000"})
    child = ShardSet(str(out))
    retry(request(crops, out))
    assert ShardSet(str(out)).root_sha256 == child.root_sha256 != child.manifest_sha256
    retry(request(mended(crops, "0002"), out))
    added = ShardSet(str(out))
    assert added.root_sha256 == added.manifest_sha256 != child.root_sha256


def test_an_image_that_was_missing_and_is_there_now(tmp_path: Path) -> None:
    scenes, out = fake_scenes(8), tmp_path / "out"
    lost = replace(
        scenes,
        samples=scenes.samples[1:],
        faulty=(FaultySample(scenes.samples[0].key, scenes.samples[0].origin),),
    )
    assert write(request(lost, out)).quarantined == 1
    with pytest.raises(UserError, match=r"are back, --retry-quarantined takes .* If not: write to"):
        prepare(request(scenes, out))
    found = retry(request(scenes, out))
    assert (found.samples, found.quarantined) == (8, 0)
    assert write_again(request(scenes, out)) == found
    assert write_again(request(lost, out)) == found
    assert verify(str(out)).problems == []


def test_a_set_is_finished_after_a_try_whatever_the_size_of_what_was_fetched_again(
    tmp_path: Path,
) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    before = ShardSet(str(out)).root_sha256
    still = request(fetched_again(crops, **{"0002": b"broken in another way"}), out)
    assert retry(still).quarantined == 3
    assert write_again(still) == ShardSet(str(out)).manifest
    assert ShardSet(str(out)).root_sha256 == before, "to streams and selections it is the same set"
    assert verify(str(out)).problems == []
    better = request(fetched_again(crops, **{"0002": jpeg(64, 32, 5)}), out)
    with pytest.raises(UserError, match="--retry-quarantined"):
        prepare(better)
    assert retry(better).quarantined == 2
    assert write_again(better) == ShardSet(str(out)).manifest
    assert ShardSet(str(out)).root_sha256 != before
    assert verify(str(out)).problems == []


def test_another_try_is_no_advice_where_it_does_not_help(tmp_path: Path) -> None:
    crops, whole = broken_crops(), fake_crops(12, 3)
    write(request(crops, tmp_path / "broken"))
    write(request(whole, tmp_path / "whole"))
    changed = fetched_again(whole, **{"0001": jpeg(64, 32)})
    for one, complaint in (
        (request(changed, tmp_path / "whole"), "in the source changed"),
        (request(crops, tmp_path / "broken", seed=1), r"settings\.seed: 0 -> 1"),
        (request(fake_crops(13, 3), tmp_path / "broken"), "samples: 12 -> 13"),
    ):
        with pytest.raises(UserError, match=complaint) as refused:
            prepare(one)
        assert "--retry-quarantined" not in str(refused.value)
        assert "or remove what is there first" in str(refused.value)


def test_a_dry_run_of_another_try_writes_nothing(
    miniature: tuple[Path, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(miniature[0] / "msmt17"), str(tmp_path / "out")
    config = PlanConfig(canvas=CanvasConfig(size=(96, 64), variants=1))
    write(make_request("msmt17", source, "train_val", out, config))
    (tmp_path / "out/shards/v0/s000000.tar").write_bytes(b"of a killed try")
    before = files(tmp_path / "out")
    command = [
        "write",
        "--dataset",
        "msmt17",
        "--split",
        "train_val",
        "--source",
        source,
        "--out",
        out,
    ]
    command += ["--set", "canvas.size=[96,64]", "--set", "canvas.variants=1", "--dry-run"]
    main([*command, "--retry-quarantined"])
    assert capsys.readouterr().out == "msmt17 train_val, quarantined: 1 images to be tried again\n"
    main(command)
    assert "msmt17 train_val: 25 images" in capsys.readouterr().out
    assert files(tmp_path / "out") == before


def test_nothing_better_changes_nothing(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    before = files(out)
    retry(request(crops, out))
    assert files(out) == before


def test_a_killed_try_leaves_nothing_that_counts(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    shutil.copytree(out, tmp_path / "undisturbed")
    whole = request(mended(crops, "0002", "0007", "0009"), out)
    prepared = prepare_retry(whole)
    assert prepared is not None
    for job in prepared.jobs():
        write_shard(job)
    (out / "shards/v1/s000000.parquet").unlink()  # killed before the last index
    (out / "shards/v1/s000001.tar").write_bytes(b"killed before its index")
    (out / "shards/v1/000007.tar").write_bytes(b"of a run with smaller shards")
    retry(whole)
    assert verify(str(out)).problems == []
    retry(replace(whole, out=str(tmp_path / "undisturbed")))
    assert files(out) == files(tmp_path / "undisturbed")


def test_other_settings_or_another_release_are_refused(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    assert prepare_retry(request(crops, out)) is None
    write(request(crops, out))
    with pytest.raises(UserError, match=r"settings\.seed: 0 -> 1"):
        prepare_retry(request(crops, out, seed=1))
    larger = fake_crops(13, 3)
    with pytest.raises(UserError, match="samples in the source: 15 -> 16"):
        prepare_retry(request(larger, out))
    assert (out / MANIFEST).exists()


def test_another_try_after_somebody_was_forgotten(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    retry(request(mended(crops, "0002"), out))
    forget(str(out), (), {crops.samples[2].key, crops.samples[0].key})
    last = retry(request(mended(crops, "0002", "0007"), out))
    assert sorted({s.name for s in last.shards if s.supplement}) == ["s000000-g1", "s000001"]
    assert (last.samples, last.quarantined, last.forgotten) == (9, 1, 2)
    assert verify(str(out)).problems == []
    kept = prepare(request(crops, out))
    assert kept.todo == ()
    assert kept.kept == last


def without(crops: FakeAdapter, lost: set[str]) -> FakeAdapter:
    faulty = tuple(FaultySample(s.key, s.origin) for s in crops.samples if s.locator in lost)
    left = [sample for sample in crops.samples if sample.locator not in lost]
    return replace(crops, samples=left, faulty=faulty)


@pytest.mark.parametrize("lost", [{"0001", "0002", "0005"}, {"0001", "0002", "0005", "0009"}])
def test_who_was_forgotten_does_not_come_back_with_an_image_that_was_missing(
    tmp_path: Path, lost: set[str]
) -> None:
    """0001, 0005 and 0009 show train:1; of what is missing the set does not know that."""
    crops, out = fake_crops(12, 3), tmp_path / "out"
    write(request(without(crops, lost), out))
    before, unseen = (
        ShardSet(str(out)).root_sha256,
        f"{len(lost)} quarantined samples do not say whom",
    )
    if "0009" in lost:  # a name that is nowhere to be found may be a typo too
        with pytest.raises(UserError, match=f"none of the 1 names is in .* But {unseen}"):
            forget(str(out), {"train:1"}, ())
    else:
        assert unseen in str(forget(str(out), {"train:1"}, ()))
    assert ShardSet(str(out)).root_sha256 == before
    with pytest.raises(UserError, match="none of the 1 names is in") as again:
        forget(str(out), {"train:1"}, ())
    assert "But" not in str(again.value)
    assert b"train:1" not in (out / MANIFEST).read_bytes()

    prepared = prepare_retry(request(crops, out))
    assert prepared is not None
    (note,) = prepared.notes
    assert note.endswith(f"{len(lost) - 1} more show people who were forgotten, and stay out")
    last = retry(request(crops, out))
    assert [sample.locator for sample in prepared.samples] == ["0002"]
    assert (last.quarantined, last.identities) == (len(lost) - 1, ("train:0", "train:2"))
    assert write_again(request(crops, out)) == last
    assert verify(str(out)).problems == []


def test_a_manifest_that_is_written_anew_still_withholds_who_was_forgotten(tmp_path: Path) -> None:
    crops, out = fake_crops(12, 3), tmp_path / "out"
    lost = request(without(crops, {"0001", "0002", "0005", "0009"}), out)
    write(lost)
    with pytest.raises(UserError, match="none of the 1 names"):
        forget(str(out), {"train:1"}, ())
    retry(request(crops, out))
    (out / "shards/v0/s000000.tar").write_bytes(b"cut short")
    assert write(lost).quarantined == 4
    assert retry(request(crops, out)).identities == ("train:0", "train:2")


def test_a_set_that_was_forgotten_from_is_not_written_anew_without_its_manifest(
    tmp_path: Path,
) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    forget(str(out), (), {crops.samples[0].key})
    (out / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"its manifest\.json is lost.*by filters\.exclude_keys"):
        prepare(request(crops, out))


def test_who_was_forgotten_does_not_come_back_by_a_killed_try(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    whole = request(mended(crops, "0002", "0007"), out)
    killed = prepare_retry(whole)
    assert killed is not None
    for job in killed.jobs():
        write_shard(job)
    forget(str(out), (), {crops.samples[2].key})
    assert not list(out.glob("shards/v*/s*"))
    with pytest.raises(UserError, match="was changed while the job ran"):
        killed.finish()
    last = retry(whole)
    assert (last.samples, last.quarantined, last.forgotten) == (10, 1, 1)
    assert crops.samples[2].key not in keys(str(out))


def test_an_interrupted_forget_brings_nobody_back(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    old = (out / QUARANTINE).read_bytes()
    forget(str(out), (), {crops.samples[2].key})
    (out / QUARANTINE).write_bytes(old)  # as if it had been killed after the manifest
    again = prepare_retry(request(mended(crops, "0002", "0007"), out))
    assert again is not None
    assert [sample.locator for sample in again.samples] == ["0007", "0009"]
    shutil.copy(out / "shards/v0/000000-g1.tar", out / "shards/v0/000000.tar")
    with pytest.raises(UserError, match="what an interrupted `forget` or retry left"):
        prepare(request(crops, out))


def test_a_run_that_began_before_a_forget_cannot_put_the_old_generation_back(
    tmp_path: Path,
) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    one = request(crops, out)
    write(one)
    stale = prepare(one)
    forget(str(out), (), {crops.samples[0].key})
    with pytest.raises(UserError, match="was forgotten from while the job ran"):
        finish(Location(one.out), stale.plan, crops, stale.listing)
    assert ShardSet(str(out)).manifest.generation == 1


def test_a_broken_supplement_sends_its_samples_back_to_quarantine(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    whole = request(mended(crops, "0002", "0007"), out)
    retry(whole)
    (out / "shards/v1/s000000.tar").write_bytes(b"cut short")
    again = write(whole)
    assert (again.samples, again.quarantined) == (9, 3)
    assert verify(str(out)).problems == []
    assert retry(whole).samples == 11


def test_a_source_that_says_otherwise_of_a_quarantined_sample_is_refused(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    changed = mended(crops, "0002")
    stranger = changed.samples[2].persons[0].model_copy(update={"identity": "train:999"})
    changed.samples[2] = replace(changed.samples[2], persons=(stranger,))
    with pytest.raises(UserError, match="says otherwise of 0002"):
        prepare_retry(request(changed, out))


def test_a_try_killed_between_quarantine_and_manifest_is_tried_again(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    manifest = (out / MANIFEST).read_bytes()
    whole = request(mended(crops, "0002"), out)
    last = retry(whole)
    (out / MANIFEST).write_bytes(manifest)
    assert retry(whole) == last
    assert verify(str(out)).problems == []


def labelled(crops: FakeAdapter, number: int, identity: str) -> FakeAdapter:
    """The release with another label on one of its crops."""
    samples = list(crops.samples)
    person = samples[number].persons[0].model_copy(update={"identity": identity})
    samples[number] = replace(samples[number], persons=(person,))
    return replace(crops, samples=samples)


def changed_releases(crops: FakeAdapter) -> dict[str, FakeAdapter]:
    renamed = [replace(one, key=f"{one.key}_1") for one in crops.samples]
    moved = [replace(crops.samples[4], origin="elsewhere/0004")]
    return {
        "label": labelled(crops, 3, "train:999"),
        "keys": replace(crops, samples=renamed),
        "origin": replace(crops, samples=[*crops.samples[:4], *moved, *crops.samples[5:]]),
    }


@pytest.mark.parametrize(
    ("name", "number", "key"), [("label", 1, "0003"), ("keys", 9, "0000"), ("origin", 1, "0004")]
)
def test_a_release_that_says_otherwise_of_what_is_in_the_set_is_refused(
    tmp_path: Path, name: str, number: int, key: str
) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    before = files(out)
    changed = changed_releases(mended(crops, "0002"))[name]
    with pytest.raises(
        UserError, match=f"says otherwise of {number} samples, .*/{key} for one, than"
    ):
        prepare_retry(request(changed, out))
    assert files(out) == before


def test_a_release_that_says_otherwise_of_what_an_earlier_try_added_is_refused(
    tmp_path: Path,
) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    better = fetched_again(crops, **{"0002": jpeg(64, 32, 5)})
    retry(request(better, out))
    more = fetched_again(better, **{"0007": jpeg(64, 32, 7)})
    with pytest.raises(UserError, match="says otherwise of 1 samples, fake/train/0002 for one"):
        prepare_retry(request(labelled(more, 2, "train:999"), out))


def test_a_try_needs_no_image_that_is_in_the_set_already(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    some = request(without(mended(crops, "0002"), {"0000", "0001", "0007"}), out)
    assert retry(some).quarantined == 2
    assert write_again(some) == ShardSet(str(out)).manifest


def test_a_set_that_a_quarantined_sample_was_forgotten_from_is_finished_after_a_try(
    tmp_path: Path,
) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    forget(str(out), (), {crops.samples[2].key})
    better = request(fetched_again(crops, **{"0007": jpeg(64, 32, 7)}), out)
    last = retry(better)
    assert (last.samples, last.quarantined, last.forgotten) == (10, 1, 1)
    assert write_again(better) == last
    assert verify(str(out)).problems == []


def test_a_try_of_a_set_without_quarantine_changes_nothing(tmp_path: Path) -> None:
    crops, out = fake_crops(12, 3), tmp_path / "out"
    write(request(crops, out))
    before = files(out)
    changed = request(fetched_again(crops, **{"0001": jpeg(64, 32, 77)}), out)
    retry(changed)
    assert files(out) == before
    with pytest.raises(UserError, match="in the source changed") as refused:
        prepare(changed)
    assert "--retry-quarantined" not in str(refused.value)


def test_another_try_is_no_advice_once_all_is_back(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    whole = mended(crops, "0002", "0007", "0009")
    assert retry(request(whole, out)).quarantined == 0
    with pytest.raises(UserError, match="in the source changed") as refused:
        prepare(request(labelled(whole, 3, "train:999"), out))
    assert "--retry-quarantined" not in str(refused.value)


def test_a_supplement_in_the_place_of_another_makes_another_set(tmp_path: Path) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    retry(request(mended(crops, "0002"), out))
    before = ShardSet(str(out)).root_sha256
    still = fetched_again(mended(crops, "0002"), **{"0009": b"broken in another way"})
    retry(request(still, out))
    assert ShardSet(str(out)).root_sha256 == before != ShardSet(str(out)).manifest_sha256
    for variant in "01":
        (out / f"shards/v{variant}/s000000.tar").write_bytes(b"cut")
    retry(request(mended(still, "0007"), out))
    held = keys(str(out))
    assert crops.samples[2].key not in held
    assert crops.samples[7].key in held
    assert ShardSet(str(out)).root_sha256 != before


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("shards/v0/000000.tar", None),
        ("shards/v0/000000.tar", b"cut short"),
        ("shards/v1/s000000.parquet", None),
        (QUARANTINE, None),
        (QUARANTINE, b"of a killed try"),
    ],
)
def test_a_set_that_was_tried_again_is_finished_with_all_its_files_only(
    tmp_path: Path, name: str, data: bytes | None
) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    better = request(fetched_again(crops, **{"0002": jpeg(64, 32, 5)}), out)
    last, whole = retry(better), (out / name).read_bytes()
    assert write_again(better) == last
    (out / name).unlink()
    if data is not None:
        (out / name).write_bytes(data)
    with pytest.raises(UserError, match=f"1 of its files .* {name} .*sharding verify {out}"):
        prepare(better)
    if name == QUARANTINE:
        retry(better)
        assert (out / name).read_bytes() == whole
        assert write_again(better) == last


def protocol(*names: str) -> dict[str, pa.Table]:
    """Searches for the person of each of these crops."""
    rows = [
        {
            "query": name,
            "key": f"fake/train/{name}",
            "box": [0, 0, 1, 1],
            "identity": "train:0",
            "gallery": ["fake/train/0001", "fake/train/0002"],
            "positives": None,
        }
        for name in names
    ]
    return {"P": pa.Table.from_pylist(rows, PROTOCOL_SCHEMA)}


def test_a_set_that_was_tried_again_is_not_finished_without_its_protocols(tmp_path: Path) -> None:
    crops, out = replace(broken_crops(), protocols=protocol("0000")), tmp_path / "out"
    write(request(crops, out))
    better = fetched_again(crops, **{"0002": jpeg(64, 32, 5)})
    last = retry(request(better, out))
    assert write_again(request(better, out)) == last
    (out / "protocols/P.parquet").unlink()
    with pytest.raises(UserError, match=r"protocols/P\.parquet for one"):
        prepare(request(better, out))


def test_another_pyarrow_leaves_a_finished_set_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, out = replace(broken_crops(), protocols=protocol("0000")), tmp_path / "out"
    write(request(crops, out))
    before, root, ours = files(out), ShardSet(str(out)).root_sha256, sharding.output.parquet_bytes

    def theirs(table: pa.Table) -> bytes:
        return ours(table.replace_schema_metadata({"written by": "another version"}))

    monkeypatch.setattr(sharding.output, "parquet_bytes", theirs)
    write_again(request(crops, out))
    assert files(out) == before
    (out / QUARANTINE).unlink()
    write_again(request(crops, out))
    assert ShardSet(str(out)).root_sha256 == root
    assert verify(str(out)).problems == []
    changed = replace(crops, protocols=protocol("0003"))
    write_again(request(changed, out))
    assert ShardSet(str(out)).protocol("P")["query"].to_pylist() == ["0003"]
    assert ShardSet(str(out)).root_sha256 == root, "its samples are the same"


def test_a_try_takes_in_nothing_that_a_filter_leaves_out(tmp_path: Path) -> None:
    scenes, out = fake_scenes(8), tmp_path / "out"
    first = scenes.samples[0]
    whole = replace(scenes, samples=[replace(first, persons=()), *scenes.samples[1:]])
    lost = replace(scenes, samples=scenes.samples[1:], faulty=(FaultySample(first.key, "0000"),))
    filters = FilterConfig(min_persons=1)
    write(request(lost, out, filters=filters))
    assert retry(request(whole, out, filters=filters)).quarantined == 1
    assert first.key not in keys(str(out))


def test_a_set_of_which_the_source_leaves_out_more_than_before_can_be_tried_again(
    tmp_path: Path,
) -> None:
    crops, out = broken_crops(), tmp_path / "out"
    write(request(crops, out))
    root = ShardSet(str(out)).root_sha256
    later = replace(crops, dull=5)
    counted = write_again(request(later, out))
    assert (counted.source_samples, counted.excluded) == (17, {"too dull": 5})
    assert ShardSet(str(out)).root_sha256 == root
    assert write_again(request(later, out)) == counted
    assert retry(request(mended(later, "0002"), out)).quarantined == 2
    assert verify(str(out)).problems == []


def test_rights_on_the_prefix_alone_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store then says of a missing file that it is forbidden."""
    there = Location.read

    def read(location: Location, start: int = 0, end: int | None = None) -> bytes:
        try:
            return there(location, start, end)
        except FileNotFoundError:
            raise PermissionError("AccessDenied") from None

    monkeypatch.setattr(Location, "read", read)
    crops, out = replace(broken_crops(), protocols=protocol("0000")), tmp_path / "out"
    first = write(request(crops, out))
    assert retry(request(crops, out)) == first
    for lost in (QUARANTINE, "protocols/P.parquet"):
        (out / lost).unlink()
        assert f"{lost}: missing" in verify(str(out)).problems
        assert write_again(request(crops, out)) == first
    better = request(mended(crops, "0002"), out)
    assert retry(better).quarantined == 2
    (out / "shards/v1/s000000.parquet").unlink()
    assert write(better) == first
    assert verify(str(out)).problems == []


def test_a_damaged_manifest_is_not_written_over_for_it_may_withhold_somebody(
    tmp_path: Path,
) -> None:
    crops, out = fake_crops(12, 3), tmp_path / "out"
    lost = request(without(crops, {"0001", "0002", "0005", "0009"}), out)
    write(lost)
    with pytest.raises(UserError, match="none of the 1 names"):
        forget(str(out), {"train:1"}, ())
    whole = (out / MANIFEST).read_bytes()
    (out / MANIFEST).write_bytes(whole[:-9])
    for refusing in (prepare, prepare_retry):
        with pytest.raises(UserError, match=r"remove what .* comes back with that: leave them out"):
            refusing(lost)
    (out / MANIFEST).write_bytes(whole)
    assert retry(request(crops, out)).identities == ("train:0", "train:2")
