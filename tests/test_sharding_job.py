"""The sharding job on a real Ray: the same bytes however it runs, dies or fails, and proof of it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from object_store import s3_environment, s3_server

from pipeline.errors import UserError, run_command
from pipeline.shards import MANIFEST, QUARANTINE, Manifest, ShardSet, sha256
from pipeline.stores.store import Location
from sharding.__main__ import main
from sharding.cluster import Cluster, ray_session
from sharding.job import ShardsFailed, write_set, write_sets
from sharding.miniature import TruthImage
from sharding.plan import PlanConfig
from sharding.prepare import prepare
from sharding.recipe import SetRequest, load_recipe, make_request, parse_settings
from sharding.upkeep.verify import verify

pytestmark = pytest.mark.launched

SETTINGS = ("shard_crops=3", "shard_bytes=60000", "group=2", "canvas.size=[640,640]")
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def native(miniature: tuple[Path, list[TruthImage]]) -> Path:
    return miniature[0]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a real S3 server, reachable by the standard credential chain."""
    root = tmp_path_factory.mktemp("store")
    (root / "bucket").mkdir()
    with s3_server(root) as port, s3_environment(port):
        yield "s3://bucket"


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Cluster]:
    """Two workers, which know how to reach the bucket."""
    with ray_session(workers=2) as session:
        yield session


def crops_request(native: Path, out: Path | str, *settings: str) -> SetRequest:
    config = parse_settings(PlanConfig, [*SETTINGS, *settings])
    return make_request("msmt17", str(native / "msmt17"), "train_val", str(out), config)


@pytest.fixture(scope="module")
def undisturbed(
    native: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """Written one task at a time."""
    out = tmp_path_factory.mktemp("undisturbed") / "crops"
    return out, write_set(prepare(crops_request(native, out)), Cluster(most=1))


@pytest.fixture
def damaged(undisturbed: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(undisturbed[0], tmp_path / "crops"))


def files(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_accounting_adds_up_and_verify_agrees(undisturbed: tuple[Path, Manifest]) -> None:
    out, manifest = undisturbed
    assert verify(str(out)).problems == []
    found = {check.what: check.found for check in manifest.counts}
    assert manifest.quarantined == 1  # the miniature's truncated crop
    assert manifest.samples + manifest.quarantined == found["images"] == 25
    assert manifest.source_samples == 25
    assert len(manifest.identities) == found["identities"] == 5
    (bad,) = pq.read_table(out / QUARANTINE).to_pylist()
    assert bad["reason"] == "truncated JPEG"
    assert bad["origin"].endswith(".jpg")
    assert len(manifest.shards) == 4 * 9
    assert json.loads((out / MANIFEST).read_bytes())["settings"]["canvas"]["size"] == [640, 640]


def test_stock_webdataset_reads_all_shards(undisturbed: tuple[Path, Manifest]) -> None:
    out, manifest = undisturbed
    for variant in range(manifest.variants):
        tars = [
            str(out / f"shards/v{variant}/{s.name}.tar") for s in ShardSet(str(out)).shards(variant)
        ]
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert len({sample["__key__"] for sample in samples}) == manifest.samples
        assert all(json.loads(sample["json"])["key"] == sample["__key__"] for sample in samples)


def test_two_workers_write_the_bytes_of_one(
    native: Path, cluster: Cluster, undisturbed: tuple[Path, Manifest], tmp_path: Path
) -> None:
    write_set(prepare(crops_request(native, tmp_path / "crops")), cluster)
    assert files(tmp_path / "crops") == files(undisturbed[0])


def test_a_rerun_of_a_finished_set_writes_no_shard(native: Path, damaged: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in damaged.rglob("*.tar")}
    write_sets([crops_request(native, damaged)])
    assert {path: path.stat().st_mtime_ns for path in damaged.rglob("*.tar")} == before


def test_a_rerun_replaces_what_is_lost_or_cut_short(
    native: Path, damaged: Path, cluster: Cluster, undisturbed: tuple[Path, Manifest]
) -> None:
    (damaged / "shards/v1/000002.tar").unlink()
    (damaged / "shards/v0/000004.tar").write_bytes(b"cut short")
    (damaged / "shards/v0/000005.parquet").write_bytes(b"not an index")
    (damaged / "shards/v0" / f".000001.tar.{'0' * 32}.tmp").write_bytes(b"left by a killed writer")
    write_set(prepare(crops_request(native, damaged)), cluster)
    assert files(damaged) == files(undisturbed[0])


def test_another_plan_over_old_shards_is_refused_by_name(native: Path, damaged: Path) -> None:
    before = files(damaged)
    with pytest.raises(UserError, match=r"settings\.seed: 0 -> 7"):
        prepare(crops_request(native, damaged, "seed=7"))
    source = shutil.copytree(native / "msmt17", damaged.parent / "native" / "msmt17")
    next(source.rglob("train/*/*.jpg")).write_bytes(b"replaced")
    with pytest.raises(UserError, match="in the source changed"):
        prepare(crops_request(source.parent, damaged))
    assert files(damaged) == before


def test_a_failing_shard_is_named_and_all_others_are_written(
    native: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(native / "msmt17", tmp_path / "native" / "msmt17")
    prepared = prepare(crops_request(source.parent, tmp_path / "crops"))
    victim = prepared.plan.shards[3]
    image = source / victim.samples[0].source.locator
    data = image.read_bytes()
    image.unlink()
    image.mkdir()  # reading it is an OSError, even for root
    with pytest.raises(ShardsFailed, match=r"1 shards of .* 000003 \(IsADirectoryError"):
        write_set(prepared, cluster)
    assert len(list(tmp_path.glob("crops/shards/v0/*.parquet"))) == 8
    assert not (tmp_path / "crops" / MANIFEST).exists()
    image.rmdir()
    image.write_bytes(data)
    write_set(prepare(crops_request(source.parent, tmp_path / "crops")), cluster)
    assert verify(str(tmp_path / "crops")).problems == []


def flip(path: Path, position: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit in a tar's picture": (
        lambda out: flip(out / "shards/v1/000003.tar", 0.5),
        "v1/000003.tar",
    ),
    "bit in a tar's end": (lambda out: flip(out / "shards/v0/000000.tar", 0.9999), "v0/000000.tar"),
    "bit in an index": (
        lambda out: flip(out / "shards/v0/000002.parquet", 0.3),
        "v0/000002.parquet",
    ),
    "tar lost": (lambda out: (out / "shards/v2/000001.tar").unlink(), "v2/000001.tar: missing"),
    "index lost": (lambda out: (out / "shards/v0/000001.parquet").unlink(), "v0/000001.parquet"),
    "quarantine lost": (lambda out: (out / QUARANTINE).unlink(), QUARANTINE),
    "foreign file": (lambda out: (out / "shards/v0/notes.txt").write_text("hi"), "notes.txt"),
    "tars swapped": (
        lambda out: shutil.copy(out / "shards/v0/000001.tar", out / "shards/v0/000002.tar"),
        "v0/000002.tar: holds",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_finds_damage_and_says_where(
    kind: str, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, where = DAMAGE[kind]
    damage(damaged)
    with pytest.raises(SystemExit) as exit_code:
        main(["verify", str(damaged)])
    assert exit_code.value.code == 1
    assert where in capsys.readouterr().out


def test_verify_recounts_what_the_manifest_claims(damaged: Path) -> None:
    manifest = ShardSet(str(damaged)).manifest
    for name, complaint in (("persons", "persons is not"), ("source_samples", "26 samples in the")):
        claimed = manifest.model_copy(update={name: getattr(manifest, name) + 1})
        (damaged / MANIFEST).write_bytes(claimed.to_json())
        (problem,) = verify(str(damaged)).problems
        assert complaint in problem


def test_a_recipe_writes_all_its_sets_to_an_object_store(
    native: Path, cluster: Cluster, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "out": f"{bucket}/shards",
        "defaults": {"shard_crops": 8, "canvas": {"size": [96, 64], "variants": 2}},
        "sets": {
            "scenes": {
                "dataset": "crowdhuman",
                "split": "train",
                "source": str(native / "crowdhuman"),
            },
            "crops": {
                "dataset": "luperson",
                "split": "train",
                "source": "to be overridden",
                "settings": {"subset": 20, "canvas": {"variants": 1}},
            },
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    source = f"sets.crops.source={native / 'luperson'}"
    main(["write", "--config", str(tmp_path / "recipe.yaml"), "--set", source])
    out = capsys.readouterr().out
    assert "!! crowdhuman train is not the release as published: images 12 of 15,000 (V)" in out
    crops = ShardSet(f"{bucket}/shards/luperson/train").manifest
    assert crops.settings["canvas"] == {
        **PlanConfig().canvas.model_dump(mode="json"),
        "size": [96, 64],
        "variants": 1,
    }
    assert crops.samples + crops.quarantined == 20
    assert verify(f"{bucket}/shards/crowdhuman/train").problems == []
    assert verify(f"{bucket}/shards/luperson/train").problems == []
    tar = Location(f"{bucket}/shards/luperson/train/shards/v0/000000.tar").read()
    assert sha256(tar) == crops.shards[0].tar_sha256


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one paragraph that a refused command prints."""
    with pytest.raises(SystemExit) as exit_code:
        run_command(lambda: main(list(arguments)))
    assert exit_code.value.code == 2
    paragraph = capsys.readouterr().err
    assert paragraph.startswith("error: ")
    assert paragraph.count("\n") == 1
    return paragraph


def test_bad_input_gets_a_paragraph_and_nothing_is_written(
    native: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, crops = str(tmp_path / "out"), str(native / "msmt17")
    good = ["write", "--dataset", "msmt17", "--split", "train_val", "--source", crops, "--out", out]

    def instead(option: str, value: str) -> str:
        changed = list(good)
        changed[changed.index(option) + 1] = value
        return refused(capsys, *changed)

    assert "Did you mean 'msmt17'" in instead("--dataset", "msmt71")
    assert "Did you mean 'train_val'" in instead("--split", "trainval")
    assert str(tmp_path / "nowhere") in instead("--source", str(tmp_path / "nowhere"))
    assert "no bucket 'no-such-bucket'" in instead("--out", "s3://no-such-bucket/shards")
    assert "scheme" in instead("--out", "ftp://host/shards")
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in instead("--out", str(tmp_path / "file" / "out"))
    assert "did you mean `shard_crops`" in refused(capsys, *good, "--set", "shard_crop=3")
    assert "--source" in refused(capsys, "write", "--dataset", "msmt17", "--out", out)
    assert "no configuration file" in refused(
        capsys, "write", "--config", str(tmp_path / "no.yaml")
    )
    assert "--dataset" in refused(capsys, "write", "--config", "x.yaml", "--dataset", "msmt17")
    assert "--only" in refused(capsys, *good, "--only", "msmt17")
    recipe = ("write", "--config", "launch/configs/sharding/paper.yaml", "--dry-run")
    assert "Did you mean 'msmt17'" in refused(capsys, *recipe, "--only", "msmt")
    assert MANIFEST in refused(capsys, "verify", out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_the_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(f"launch/configs/sharding/{name}.yaml", [])
    requests = {request.adapter.name: request for request in recipe.requests()}
    assert list(requests) == ["crowdhuman", "ecp", "msmt17", "cuhk03", "luperson"]
    assert requests["msmt17"].config.group == 2
    assert requests["msmt17"].config.canvas == requests["luperson"].config.canvas
    assert recipe.requests(["luperson", "msmt17"]) == [requests["luperson"], requests["msmt17"]]
