"""`python -m pipeline index`: tars that other tools wrote become shard sets, and stay as they are."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
import webdataset
from finished_set import files
from object_store import s3_environment, s3_server

from pipeline.__main__ import main
from pipeline.errors import UserError
from pipeline.foreign.fields import FieldMap
from pipeline.foreign.reader import ForeignTar, read_samples
from pipeline.samples import SampleReader
from pipeline.shards import MANIFEST, ShardSet, index_name, read_parquet
from pipeline.stores.store import Location
from sharding.upkeep.forget import forget
from sharding.upkeep.verify import verify
from tests.shardset import canvas_items, picture, scene_items, simple_set

HEIGHT, WIDTH = 24, 32


def jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(picture(HEIGHT, WIDTH, seed), 90)


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """As webdataset's ShardWriter would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for name, members in samples.items():
            writer.write({"__key__": name, **members})


def boxed(seed: int, *boxes: list[float], **fields: Any) -> dict[str, bytes]:
    """A sample as img2dataset lays it out: image, caption and JSON."""
    record = {"caption": "people", "objects": [{"bbox": box} for box in boxes], **fields}
    return {"jpg": jpeg(seed), "txt": b"people", "json": json.dumps(record).encode()}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two tars of three scenes each, whose names come again in the second."""
    folder = tmp_path / "scenes"
    for tar in (0, 1):
        names = {f"{n:05d}": boxed(3 * tar + n, [2, 3, 10, 20], [-5, 0, 30, 9]) for n in range(3)}
        write_tar(folder / f"{tar:05d}.tar", names)
    return folder


def index(url: Path | str, *options: str, task: str = "detection") -> None:
    labels = ["--dataset", "web", "--split", "train", "--task", task]
    main(["index", str(url), *labels, *options])


BOXES = ("--boxes", "objects.bbox", "--box-format", "xywh")


def stored(url: Path | str) -> Iterator[tuple[str, Any]]:
    """Key and sample of everything that the stream could read."""
    reader = SampleReader(ShardSet(str(url)))
    for shard, record in enumerate(reader.shard_set.shards()):
        for slot in range(record.slots):
            yield str(reader.key(shard, slot)), reader.read(0, shard, slot)


def test_the_tars_stay_and_every_sample_is_read_where_it_lies(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(scenes)
    index(scenes, *BOXES)
    assert files(scenes).items() >= before.items()
    found = dict(stored(scenes))
    assert list(found) == [f"web/train/{t:05d}/{n:05d}" for t in (0, 1) for n in range(3)]
    for seed, sample in enumerate(found.values()):
        assert sample.image == jpeg(seed)
        assert [person.box for person in sample.annotation.persons] == [
            (2, 3, 12, 23),
            (-5, 0, 25, 9),
        ]
    assert verify(str(scenes)).problems == []
    printed = capsys.readouterr().out
    assert (
        "2 tars (0 indexed before), 6 samples, 12 persons, 0 identities, 0 quarantined" in printed
    )
    assert "left alone: 6 .txt" in printed


def test_verify_sees_what_happens_to_the_tars(scenes: Path) -> None:
    index(scenes, *BOXES)
    tar = scenes / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(jpeg(4)) + 100] ^= 1
    tar.write_bytes(data)
    assert any("sha256" in problem for problem in verify(str(scenes)).problems)
    tar.unlink()
    assert verify(str(scenes)).problems == ["00001.tar: missing"]


def test_a_set_may_lie_elsewhere(scenes: Path, tmp_path: Path) -> None:
    before = files(scenes)
    out = tmp_path / "set"
    index(scenes, *BOXES, "--out", str(out))
    assert files(scenes) == before
    assert sorted(files(out)) == [
        MANIFEST,
        "quarantine.parquet",
        index_name(0, "000000"),
        index_name(0, "000001"),
    ]
    assert len(list(stored(out))) == 6
    assert verify(str(out)).problems == []


def test_what_cannot_be_used_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    whole = boxed(0, [2, 3, 10, 20])
    bad = {
        "a": {"txt": b"no picture", "npy": b"never looked at", "pyd": b"\x80\x04."},
        "b": {**whole, "png": b"two pictures"},
        "c": {**whole, "jpg": b"no picture"},
        "d": {"jpg": jpeg(0)},
        "e": {**whole, "json": b"{"},
        "f": {**whole, "json": b"{}"},
        "g": boxed(0, [0.1, 0.2, 0.5, 0.6]),
        "h": boxed(0, [40, 3, 10, 20]),
        "i": boxed(0, [2, 3, 10]),
        "\udcff": {"cls": b"a name of any bytes"},
        "l.m": whole,
        "j": whole,
        "k": whole,
    }
    tar = tmp_path / "t.tar"
    write_tar(tar, bad)
    with tarfile.open(tar, "a") as more:  # a name that comes again, not as a neighbour
        more.add(_file(tmp_path, jpeg(1)), "j.jpg")
        more.add(_file(tmp_path, whole["json"]), "j.json")
    index(tmp_path, *BOXES)
    assert [key for key, _ in stored(tmp_path)] == ["web/train/t/j", "web/train/t/k"]
    rows = Location(str(tmp_path)).child("quarantine.parquet").read()
    found = {(row["origin"], row["reason"]) for row in read_parquet(rows).to_pylist()}
    reasons = {
        "t.tar/a": "no image",
        "t.tar/\\udcff": "no image",
        "t.tar/l": "no image: its name has a dot before the extension, where webdataset cuts it",
        "t.tar/b": "several images: jpg, png",
        "t.tar/d": "no field objects.bbox",
        "t.tar/e": "not JSON",
        "t.tar/f": "no field objects.bbox",
        "t.tar/g": "objects.bbox: less than a pixel wide or high as xywh",
        "t.tar/h": "objects.bbox: outside of the image as xywh",
        "t.tar/i": "objects.bbox: not four numbers",
        "t.tar/j": "a sample of this name comes before it",
    }
    assert found >= set(reasons.items())
    assert {origin for origin, _ in found} == {*reasons, "t.tar/c"}
    assert verify(str(tmp_path)).problems == []


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "member"
    path.write_bytes(data)
    return path


def test_crops_become_canvases_of_their_own_size(tmp_path: Path) -> None:
    people = [7, 7, 7, 9, None]
    samples = {str(n): boxed(n, pid=pid) for n, pid in enumerate(people)}
    write_tar(tmp_path / "t.tar", {**samples, "5": {"jpg": jpeg(5), "json": b'{"pid": 9}'}})
    index(tmp_path, "--whole-image", "--identity", "pid", "--group", "2", task="reid")
    canvases = [sample.annotation for _, sample in stored(tmp_path)]
    shown = [canvas.persons[0].identity for canvas in canvases]
    assert shown == [*["train:7"] * 3, "train:9", None, "train:9"]
    assert canvases[0].persons[0].box == (0, 0, WIDTH, HEIGHT)
    assert canvases[0].canvas is not None and canvases[0].canvas.ratio == (1, 1)
    assert SampleReader(ShardSet(str(tmp_path))).runs(0).tolist() == [0, 0, 1, 2, 3, 4]
    assert verify(str(tmp_path)).problems == []


def test_crops_need_no_json(tmp_path: Path) -> None:
    write_tar(tmp_path / "a/b/t.tar", {f"x/{n}": {"jpeg": jpeg(n)} for n in range(3)})
    index(tmp_path, "--whole-image", task="reid")
    assert [key for key, _ in stored(tmp_path)] == [f"web/train/a/b/t/x/{n}" for n in range(3)]
    assert verify(str(tmp_path)).problems == []


def test_a_set_that_lost_its_indexes(tmp_path: Path) -> None:
    url = simple_set(tmp_path / "set", "detection", shards=2, per_shard=3, dataset="web")
    kept = [(key, sample.annotation) for key, sample in stored(url)]
    for lost in [MANIFEST, index_name(0, "000000"), index_name(0, "000001")]:
        (Path(url) / lost).unlink()
    index(url)
    assert [(key, sample.annotation) for key, sample in stored(url)] == kept
    assert verify(url).problems == []
    with pytest.raises(UserError, match="another tool's"):
        forget(url, ["train:1"], [])
    shutil.copy(Path(url) / "shards/v0/000000.tar", Path(url) / "shards/v0/000002.tar")
    with pytest.raises(UserError, match="3 samples are in several tars: web/train/00000"):
        index(url)


def test_our_annotations_in_other_tools_tars(tmp_path: Path) -> None:
    items = canvas_items(4, dataset="web")
    samples = {i.annotation.key: {"jpg": i.image, "json": i.annotation.to_json()} for i in items}
    other = scene_items(1)[0]
    samples["web/train/x"] = {"jpg": other.image, "json": other.annotation.to_json()}
    write_tar(tmp_path / "t.tar", samples)
    index(tmp_path, task="reid")
    assert [sample.annotation for _, sample in stored(tmp_path)] == [i.annotation for i in items]
    assert ShardSet(str(tmp_path)).manifest.identities == ("train:0000", "train:0001")
    assert verify(str(tmp_path)).problems == []


def test_it_goes_on_where_it_was_and_takes_new_tars(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index(scenes, *BOXES)
    once = files(scenes)
    os.remove(scenes / MANIFEST)
    os.remove(scenes / index_name(0, "000001"))
    index(scenes, *BOXES)
    assert files(scenes) == once
    assert "2 tars (1 indexed before)" in capsys.readouterr().out
    write_tar(scenes / "00002.tar", {"0": boxed(9, [2, 3, 10, 20])})
    index(scenes, *BOXES)
    assert "3 tars (2 indexed before), 7 samples" in capsys.readouterr().out
    os.remove(scenes / "00000.tar")
    index(scenes, *BOXES)
    assert "2 tars (0 indexed before), 4 samples" in capsys.readouterr().out
    assert verify(str(scenes)).problems == []


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[:9000], "plain tar"),
        (lambda data: data[: data.rindex(b"}") // 512 * 512 + 512] + b"x" * 1024, "no end mark"),
        (lambda data: data + data, "no end mark"),
        (lambda data: b"\x1f\x8b" + data, "plain tar"),
    ],
)
def test_a_tar_that_cannot_be_read_to_its_end_is_named(scenes: Path, damage: Any, why: str) -> None:
    tar = scenes / "00001.tar"
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(UserError, match=rf"1 of 2 tars cannot.*00001.tar \(.*{why}"):
        index(scenes, *BOXES)
    assert not (scenes / MANIFEST).exists()
    assert (scenes / index_name(0, "000000")).exists()


def test_where_tarfile_and_webdataset_disagree(tmp_path: Path) -> None:
    names = ["__meta__/x.jpg", "a.jpg", "noextension", "a.cls", "@a.JSON", "a.JSON", "b/c.d.jpg"]
    tar = tmp_path / "t.tar"
    _write_members(tar, names)
    first, second = read_samples(tar)
    assert (first.name, sorted(first.members), first.images) == (
        "a",
        ["cls", "jpg", "json"],
        ["jpg"],
    )
    assert (second.name, sorted(second.members), second.images) == ("b/c", ["d.jpg"], [])
    data = tar.read_bytes()
    for name, member in (("a.jpg", first.members["jpg"]), ("a.JSON", first.members["json"])):
        assert member.data == name.encode() == data[member.offset :][: member.size]
    assert first.members["cls"].data is None
    assert second.hidden_images and not first.hidden_images
    _write_members(tar, ["a.jpg", "a.json", "a.jpg"])
    with pytest.raises(ForeignTar, match=r"a.jpg: duplicate file name"):
        list(read_samples(tar))


def _write_members(tar: Path, names: list[str]) -> None:
    """Each holds its own name; one with an @ becomes a link without it."""
    with tarfile.open(tar, "w") as writer:
        for name in names:
            member = tarfile.TarInfo(name.removeprefix("@"))
            member.size = len(name)
            if name.startswith("@"):
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "a.jpg", 0
            writer.addfile(member, io.BytesIO(name.encode()))


def test_refusals_say_what_to_do(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not one sample can be used: 6 its JSON is not our"):
        index(scenes)
    many = tmp_path / "many"
    write_tar(many / "t.tar", {str(n): boxed(n, [1, 1, 9, 9]) for n in range(21)})
    with pytest.raises(UserError, match=r"21 of the first 21 samples.*say where it names people"):
        index(many)
    index(many, *BOXES)
    with pytest.raises(UserError, match="with other settings"):
        index(many, "--boxes", "objects.bbox")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"no .tar below"):
        index(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot index .* into .*file/set"):
        index(many, *BOXES, "--out", str(tmp_path / "file/set"))
    for wrong in (["--whole-image"], ["--identity", "pid"], ["--whole-image", *BOXES]):
        with pytest.raises(UserError, match="--whole-image"):
            index(scenes, *wrong)


@pytest.mark.parametrize(
    ("record", "boxes", "identity", "expected"),
    [
        ({"b": [1, 2, 3, 4]}, "b", None, [((1, 2, 3, 4), None)]),
        ({"b": [[1, 2, 3, 4], [0, 0, 5, 5]], "i": ["x", None]}, "b", "i", "x"),
        ({"b": []}, "b", None, []),
        ({"a": [{"b": [1, 2, 3, 4], "i": 5}]}, "a.b", "a.i", [((1, 2, 3, 4), "s:5")]),
        ([{"b": [1, 2, 3, 4]}], "b", None, [((1, 2, 3, 4), None)]),
    ],
)
def test_fields(record: Any, boxes: str, identity: str | None, expected: Any) -> None:
    if expected == "x":
        expected = [((1, 2, 3, 4), "s:x"), ((0, 0, 5, 5), None)]
    persons = annotate(FieldMap(boxes=boxes, identity=identity), json.dumps(record).encode())
    assert [(person.box, person.identity) for person in persons] == expected


@pytest.mark.parametrize(
    "data",
    [
        b'{"b": [[1, 2, 3, NaN]]}',
        b'{"b": [[1, 2, 3, true]]}',
        b'{"b": "1 2 3 4"}',
        b'{"b": [[1, 2, 3, 4]], "i": [1, 2]}',
        b'{"b": [[1, 2, 3, 4]], "i": [1.5]}',
        b'{"b": [[1, 2, 3, 4]], "i": ["a\\nb"]}',
        b'{"b": [[1, 2, 3, 4]]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_fields_that_say_nothing(data: bytes) -> None:
    with pytest.raises(ValueError):
        annotate(FieldMap(boxes="b", identity="i"), data)


def test_a_missing_field_is_named_by_its_whole_path() -> None:
    with pytest.raises(ValueError, match=r"no field a\.c\.b"):
        annotate(FieldMap(boxes="a.c.b"), b'{"a": [{"c": [{"d": 1}]}]}')


def annotate(fields: FieldMap, data: bytes) -> Any:
    return fields.annotate(
        data, key="k", size=(10, 10), dataset="d", domain="d", split="s", task="detection"
    ).persons


def test_tars_and_set_on_a_store(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "root/bucket").mkdir(parents=True)
    shutil.copytree(scenes, tmp_path / "root/bucket/tars")
    with s3_server(tmp_path / "root") as port, s3_environment(port):
        index("s3://bucket/tars", *BOXES, "--out", "s3://bucket/set")
        assert ShardSet("s3://bucket/set").manifest.shards[1].tar == "s3://bucket/tars/00001.tar"
        assert [sample.image for _, sample in stored("s3://bucket/set")] == [
            jpeg(n) for n in range(6)
        ]
        assert verify("s3://bucket/set").problems == []
