"""Half-unpacked sources, colliding outputs and unusable destinations are refused before a byte is written."""

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeAdapter, fake_scenes
from finished_set import files, write_finished_set

from pipeline.errors import UserError
from pipeline.shards import MANIFEST
from pipeline.stores.store import Location
from sharding.__main__ import main
from sharding.datasets.base import FaultySample, Published
from sharding.destination import check_destination
from sharding.existing import find_manifest
from sharding.job import prepare_sets, write_sets
from sharding.output import finish, quarantine_summary
from sharding.plan import PlanConfig
from sharding.prepare import PreparedSet, prepare
from sharding.recipe import RecipeConfig, SetRequest
from sharding.source import Source
from sharding.summary import plan_report, written_lines
from sharding.writer import write_shard


def request(adapter: FakeAdapter, out: Path, **settings: object) -> SetRequest:
    return SetRequest(adapter, Source(str(out.parent)), "train", str(out), PlanConfig(**settings))


def scenes_without(lost: int, count: int = 20) -> FakeAdapter:
    scenes = fake_scenes(count)
    faulty = tuple(FaultySample(s.key, s.origin) for s in scenes.samples[:lost])
    return replace(scenes, samples=scenes.samples[lost:], faulty=faulty)


@pytest.mark.parametrize("lost", [1, 12, 20])
def test_a_half_unpacked_release_is_refused(tmp_path: Path, lost: int) -> None:
    with pytest.raises(UserError, match=rf"^{lost} of 20 .*0000 for one \(missing.*max_missing=1"):
        prepare(request(scenes_without(lost), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_few_missing_images_are_quarantined_and_more_if_the_user_says_so(tmp_path: Path) -> None:
    few = prepare(request(scenes_without(1, 100), tmp_path / "out"))
    assert few.plan.samples == 100
    more = prepare(request(scenes_without(12), tmp_path / "out", max_missing=1))
    assert "missing or damaged: 12, such as 0000" in "\n".join(plan_report([more], 1))
    with pytest.raises(UserError, match="no sample to write"):
        prepare(request(scenes_without(20), tmp_path / "out", max_missing=1))


@pytest.mark.parametrize(("lost", "advice"), [(1, "Run it again"), (3, "folder on all nodes")])
def test_shards_that_other_nodes_wrote_elsewhere_are_asked_for(
    tmp_path: Path, lost: int, advice: str
) -> None:
    scenes = fake_scenes(20)
    prepared = prepare(request(scenes, tmp_path / "out", shard_bytes=1))
    for job in prepared.jobs():
        write_shard(job)
    for number in range(lost):
        (tmp_path / f"out/shards/v0/{number:06d}.parquet").unlink()
    with pytest.raises(UserError, match=rf"^{lost} of 20 indexes .*000000\.parquet .*{advice}"):
        finish(Location(str(tmp_path / "out")), prepared.plan, scenes, prepared.listing)


def test_two_sets_of_one_output_are_refused(tmp_path: Path) -> None:
    first = request(fake_scenes(2), tmp_path / "out")
    second = replace(first, source=Source("/elsewhere"), out=first.out + "/")
    with pytest.raises(UserError, match=f"from {tmp_path} and .*elsewhere would both be written"):
        prepare_sets([first, second])
    prepare_sets([first, replace(second, out=first.out + "2")])


def test_a_split_named_twice_is_refused(miniature: tuple[Path, object], tmp_path: Path) -> None:
    split = ["--split", "train", "--split", "train", "--out", str(tmp_path / "out")]
    source = str(miniature[0] / "crowdhuman")
    with pytest.raises(UserError, match="would both be written"):
        main(["write", "--dataset", "crowdhuman", "--source", source, *split, "--dry-run"])


class Store:
    """A store's client whose look at the bucket ends in `error`, and that at a folder in it in `listed`."""

    def __init__(self, error: Exception, listed: Exception | list[str]) -> None:
        self.error, self.listed = error, listed

    def info(self, path: str) -> dict[str, object]:
        assert path == "bucket"
        raise self.error

    def ls(self, path: str, **options: bool) -> list[str]:
        assert path == "bucket/x"
        if isinstance(self.listed, Exception):
            raise self.listed
        return self.listed


ABSENT, FORBIDDEN, NO_ROUTE = (
    FileNotFoundError("x"),
    PermissionError("no"),
    ConnectionError("route"),
)


@pytest.mark.parametrize(
    ("error", "listed", "complaint"),
    [
        (ABSENT, ABSENT, "there is no bucket 'bucket'. Create it first"),
        (FORBIDDEN, FORBIDDEN, r"not allowed to use the bucket 'bucket', .* \(no\)"),
        (NO_ROUTE, ABSENT, "cannot reach s3://bucket/x: ConnectionError: route"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: Exception, listed: Exception, complaint: str
) -> None:
    monkeypatch.setattr(Location, "fs", Store(error, listed))
    with pytest.raises(UserError, match=complaint):
        check_destination(Location("s3://bucket/x"))


@pytest.mark.parametrize(
    ("error", "listed"),
    [(FORBIDDEN, ABSENT), (FORBIDDEN, ["bucket/x/shards"]), (ABSENT, ["bucket/x/shards"])],
)
def test_rights_on_a_prefix_suffice(
    monkeypatch: pytest.MonkeyPatch, error: Exception, listed: Exception | list[str]
) -> None:
    monkeypatch.setattr(Location, "fs", Store(error, listed))
    check_destination(Location("s3://bucket/x"))


def test_a_manifest_is_missing_only_where_it_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(location: Location) -> bytes:
        raise PermissionError("what S3 says of a missing file too")

    monkeypatch.setattr(Location, "read", forbid)
    assert find_manifest(Location(str(tmp_path))) is None
    (tmp_path / MANIFEST).write_text("there")
    with pytest.raises(PermissionError):
        find_manifest(Location(str(tmp_path)))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("s3://", "names no bucket"),
        ("s3:///shards", "names no bucket"),
        ("memory://shards", "processes of their own"),
    ],
)
def test_destinations_that_no_worker_can_write_to(url: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_destination(Location(url))


def test_dry_run_checks_what_a_run_checks_and_says_what_is_not_as_published(
    miniature: tuple[Path, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dry_run(out: str) -> None:
        source = str(miniature[0] / "ecp")
        main(["write", "--dataset", "ecp", "--split", "day_train", "--source", source,
              "--out", out, "--dry-run"])  # fmt: skip

    dry_run(str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "ecp day_train: 8 images" in printed
    assert "excluded, no pedestrian: 2" in printed
    assert "!! ecp day_train is not the release as published: images 10 of 23,892 (R)" in printed
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder one may write to"):
        dry_run(str(tmp_path / "file"))


def test_a_summary_of_a_dry_run_is_refused(tmp_path: Path) -> None:
    summary = tmp_path / "run.json"
    with pytest.raises(UserError, match="--dry-run writes nothing"):
        main(["write", "--dataset", "ecp", "--source", "/release", "--out", str(tmp_path / "out"),
              "--dry-run", "--summary", str(summary)])  # fmt: skip


def test_recoding_asked_of_crops_is_refused_and_may_be_the_default_of_a_recipe(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="jpeg:90 is for scenes, and msmt17 holds re-ID crops"):
        main(["write", "--dataset", "msmt17", "--source", "/release", "--out", str(tmp_path / "out"),
              "--recode", "jpeg:90", "--max-side", "640"])  # fmt: skip
    one = {"dataset": "msmt17", "source": "/release", "split": "train"}
    recipe = {"out": "/out", "defaults": {"recode": "jpeg:90"}, "sets": {"crops": one}}
    assert RecipeConfig(**recipe).requests()[0].config.recode == "jpeg:90"
    one["settings"] = {"recode": "jpeg:80"}
    with pytest.raises(UserError, match="jpeg:80 is for scenes"):
        RecipeConfig(**recipe).requests()


def write(prepared: PreparedSet) -> None:
    """The job without Ray."""
    for job in prepared.jobs():
        write_shard(job)


def test_the_end_of_a_run_says_what_was_quarantined(tmp_path: Path) -> None:
    scenes = scenes_without(3)
    for damage, name in enumerate(("0005", "0006"), start=5):
        scenes.images[name] = scenes.images[name][: damage * 40]
    prepared = prepare(request(scenes, tmp_path / "out", max_missing=1))
    write(prepared)
    manifest = finish(Location(prepared.request.out), prepared.plan, scenes, prepared.listing)
    assert manifest.source_samples == 20 + 3
    line = written_lines(manifest, prepared.request.out)[-1]
    assert line.startswith("fake train: 5 quarantined: 3 missing from the source, 2 truncated JPEG")
    assert line.endswith(f"see {tmp_path}/out/quarantine.parquet")


def test_a_rerun_leaves_the_manifest_of_the_same_samples_as_it_is(tmp_path: Path) -> None:
    """Streams and selections know a set by it: a later release's word on licence or counts moves nothing."""
    scenes, out = fake_scenes(5), tmp_path / "out"
    scenes.images["0002"] = b"<html>"
    write_finished_set(scenes, str(out))
    written = files(out)
    later = replace(
        scenes, licence="mended", homepage="moved", splits={"train": (Published("images", 5, "V"),)}
    )
    (out / "shards/v0/000000.tar").unlink()
    kept = write_finished_set(later, str(out))
    assert files(out) == written
    assert kept.licence == "none"
    (out / "manifest.json").unlink()
    assert write_finished_set(later, str(out)).licence == "mended"


def test_a_set_without_samples_gets_no_manifest(tmp_path: Path) -> None:
    scenes = fake_scenes(3)
    scenes.images = dict.fromkeys(scenes.images, b"<html>")
    prepared = prepare(request(scenes, tmp_path / "out"))
    write(prepared)
    with pytest.raises(UserError, match=r"not one sample could be used \(3 .*quarantine\.parquet"):
        finish(Location(prepared.request.out), prepared.plan, scenes, prepared.listing)
    assert not (tmp_path / "out/manifest.json").exists()
    assert quarantine_summary(Location(prepared.request.out)).startswith("3 ")


def test_a_set_without_samples_does_not_keep_others_from_being_finished(tmp_path: Path) -> None:
    bad, good = fake_scenes(3), fake_scenes(3)
    bad.images = dict.fromkeys(bad.images, b"<html>")
    requests = [request(bad, tmp_path / "bad"), request(good, tmp_path / "good")]
    for one in requests:
        write(prepare(one))
    errors = [outcome.error for outcome in write_sets(requests)]
    assert "not one sample could be used" in str(errors[0])
    assert errors[1] is None
    assert (tmp_path / "good/manifest.json").exists()


@pytest.mark.parametrize("target", ["crowdhuman", "crowdhuman/deeper", "."])
def test_a_miniature_onto_a_file_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "crowdhuman").write_text("mine")
    with pytest.raises(UserError, match="crowdhuman is a file"):
        main(["miniature", str(tmp_path / target)])


def test_a_failing_disk_at_the_end_of_one_set_does_not_keep_others_from_being_finished(
    tmp_path: Path,
) -> None:
    requests = [request(fake_scenes(3), tmp_path / name) for name in ("bad", "good")]
    for one in requests:
        write(prepare(one))
    (tmp_path / "bad/quarantine.parquet").mkdir()
    bad, good = write_sets(requests)
    assert bad.error is not None
    assert bad.error.startswith("fake train: [Errno ")
    assert good.manifest is not None


def test_keys_of_a_filter_that_the_release_does_not_have_are_said(tmp_path: Path) -> None:
    scenes = fake_scenes(4)
    listed = f"\ufeff{scenes.samples[0].key}\r\n{scenes.samples[1].key}.jpg\r\n"
    (tmp_path / "keys").write_text(listed, encoding="utf-8")
    prepared = prepare(
        request(scenes, tmp_path / "out", filters={"exclude_keys": str(tmp_path / "keys")})
    )
    assert prepared.plan.excluded["in the list of excluded keys"] == 1
    (note,) = prepared.notes
    assert note == (
        f"!! fake train: 1 keys of the filters' files are not in the release: {tmp_path}/keys:2"
    )


def test_samples_whose_key_another_has_are_a_loud_line(tmp_path: Path) -> None:
    scenes = fake_scenes(4)
    scenes.samples += scenes.samples[1:3]
    prepared = prepare(request(scenes, tmp_path / "out"))
    (line,) = prepared.notes
    assert line.startswith("!! fake train: 2 samples are left out: others have their keys")
    assert line in plan_report([prepared], 1)


@pytest.mark.parametrize("option", [["--summary", "{file}/run.json"], ["--workers", "0"]])
def test_options_that_cannot_be_used_are_refused_before_anything_is_written(
    miniature: tuple[Path, object], tmp_path: Path, option: list[str]
) -> None:
    source = ["--dataset", "prw", "--source", str(miniature[0] / "prw")]
    (tmp_path / "file").write_text("")
    option = [part.format(file=tmp_path / "file") for part in option]
    with pytest.raises((UserError, SystemExit)):
        main(["write", *source, "--out", str(tmp_path / "out"), *option])
    assert not (tmp_path / "out").exists()
