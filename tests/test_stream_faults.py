"""What the stream does with damage: replaces, counts, bounds, names; and what it leaves behind."""

import json
import resource
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.annotation import Annotation
from pipeline.batch import Batch, Use
from pipeline.errors import UserError
from pipeline.rendering.renderer import Renderer
from pipeline.samples import SampleReader
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.shards import FORGOTTEN, MANIFEST, QUARANTINED, Shard, ShardSet
from pipeline.stores.store import Location
from pipeline.stores.tars import Tar, Tars
from pipeline.stream import Stream
from tests.shardset import Item, canvas_items, scene_items, simple_set, write_shard_set


def scenes(url: str, **settings: Any) -> StreamConfig:
    return StreamConfig(
        scenes=(MixtureEntry(shards=url, weight=1),),
        scene_size=(48, 64),
        **{"scene_batch": 4, "max_bad_share": 1.0, **settings},
    )


def read(stream: Stream, steps: int) -> list[Batch]:
    with stream.batches(0, steps) as batches:
        return list(batches)


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches if batch.scenes for key in batch.scenes.keys]


def damaged(items: list[Item], number: int) -> list[Item]:
    """The image of one sample is cut in the middle; its header is whole."""
    item = items[number]
    return [*items[:number], replace(item, image=item.image[:900]), *items[number + 1 :]]


def test_a_bad_sample_is_replaced_and_moves_nobody(tmp_path: Path) -> None:
    items = scene_items(12)
    good = Stream.open(scenes(write_shard_set(tmp_path / "good", [[items]])))
    ledger = tmp_path / "ledger.jsonl"
    url = write_shard_set(tmp_path / "bad", [[damaged(items, 5)]])
    bad = Stream.open(scenes(url), ledger_path=ledger)
    wanted, got = keys(read(good, 6)), keys(read(bad, 6))
    places = [p for p, key in enumerate(wanted) if key == "crowd/train/00005"]
    assert len(places) == 2
    assert [p for p in range(24) if wanted[p] != got[p]] == places
    assert "crowd/train/00005" not in got
    assert got == keys(read(Stream.open(scenes(url, threads=4)), 6))
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {record["key"] for record in records} == {"crowd/train/00005"}
    assert {record["position"] for record in records} >= set(places)
    assert records[0]["shard"] == f"{url}/shards/v0/000000.tar"
    assert records[0]["reason"].startswith("damaged JPEG")
    with open(records[0]["shard"], "rb") as tar:
        tar.seek(records[0]["offset"])
        assert tar.read(2) == b"\xff\xd8"
    assert bad.ledger.bad["crowd/train"] == len(records)
    assert bad.ledger.decoded["crowd/train"] == 24


def test_the_ids_are_what_the_order_asks_for(tmp_path: Path) -> None:
    url = write_shard_set(tmp_path, [[damaged(scene_items(12), 5)]])
    stream = Stream.open(scenes(url))
    asked = [key for step in range(3) for _, key in stream.ids(step)["detection"]]
    assert sorted(asked) == [f"crowd/train/{n:05d}" for n in range(12)]


def test_forgotten_samples_keep_their_place_empty(tmp_path: Path) -> None:
    items = scene_items(12)
    before = Stream.open(scenes(write_shard_set(tmp_path / "0", [[items]])))
    items[3] = replace(items[3], status=FORGOTTEN)
    after = Stream.open(scenes(write_shard_set(tmp_path / "1", [[items]])))
    asked, now = ([k for s in range(3) for _, k in x.ids(s)["detection"]] for x in (before, after))
    moved = [p for p in range(12) if asked[p] != now[p]]
    assert [asked[p] for p in moved] == ["crowd/train/00003"]
    assert now == keys(read(after, 3))
    assert not after.ledger.bad


def test_quarantined_samples_have_no_place(tmp_path: Path) -> None:
    items = scene_items(13)
    items[3] = replace(items[3], status=QUARANTINED)
    stream = Stream.open(scenes(write_shard_set(tmp_path, [[items]])))
    asked = [key for step in range(3) for _, key in stream.ids(step)["detection"]]
    assert len(set(asked)) == 12
    assert "crowd/train/00003" not in asked


def test_too_many_bad_samples_stop_the_stream(tmp_path: Path) -> None:
    items = scene_items(40)
    for number in range(0, 40, 2):
        items = damaged(items, number)
    stream = Stream.open(scenes(write_shard_set(tmp_path, [[items]]), max_bad_share=0.2))
    with pytest.raises(UserError, match=r"of crowd/train were unusable, more than .* 0\.2"):
        read(stream, 40)
    assert 10 < stream.ledger.bad["crowd/train"] <= 14


def test_a_long_run_of_bad_samples_stops_the_stream(tmp_path: Path) -> None:
    """A replacement that is usable does not end the run: its place had a bad sample still."""
    items = scene_items(40)
    for number in range(40):
        items = damaged(items, number) if number % 4 else items
    url = write_shard_set(tmp_path / "set", [[items]])
    written = []
    for threads in (1, 4):
        ledger = tmp_path / f"{threads}.jsonl"
        stream = Stream.open(scenes(url, max_bad_run=20, threads=threads), ledger_path=ledger)
        with pytest.raises(
            UserError, match=r"20 samples of crowd/train in a row .* max_bad_run of"
        ):
            read(stream, 40)
        written.append([json.loads(line) for line in ledger.read_text().splitlines()])
    assert written[0] == written[1]
    assert len({record["position"] for record in written[0][-20:]}) < 20 < len(written[0])


def test_a_set_without_a_usable_sample_is_named(tmp_path: Path) -> None:
    items = [replace(item, image=b"") for item in scene_items(6)]
    url = write_shard_set(tmp_path / "set", [[items]])
    ledger = tmp_path / "ledger.jsonl"
    stream = Stream.open(scenes(url), ledger_path=ledger)
    with pytest.raises(UserError, match=r"position 0 cannot be used, nor can 16"):
        read(stream, 1)
    assert len(ledger.read_text().splitlines()) == 17


def relabel(item: Item, **changes: Any) -> Item:
    return replace(item, annotation=item.annotation.model_copy(update=changes))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 127}, "size"),
        ({"width": 0}, "invalid annotation"),
    ],
)
def test_an_annotation_that_does_not_fit_is_a_bad_sample(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    items = scene_items(4)
    items[1] = relabel(items[1], **change)
    stream = Stream.open(scenes(write_shard_set(tmp_path, [[items]])))
    read(stream, 2)
    assert {(r.key, reason in r.reason) for r in stream.ledger.recent} == {
        ("crowd/train/00001", True)
    }


def test_a_stale_index_is_noticed(tmp_path: Path) -> None:
    """Two samples of equal size have changed places in the tar."""
    items = scene_items(4)
    url = write_shard_set(tmp_path, [[items]])
    tar = tmp_path / "shards/v0/000000.tar"
    data = tar.read_bytes()
    swapped = data.replace(b'"crowd/train/00000"', b'"crowd/train/00009"')
    tar.write_bytes(swapped)
    stream = Stream.open(scenes(url))
    read(stream, 2)
    assert {r.reason for r in stream.ledger.recent} == {
        "the tar holds 'crowd/train/00009' where the index says 'crowd/train/00000'"
    }


def test_a_cut_tar_and_a_missing_one_are_named(tmp_path: Path) -> None:
    url = simple_set(tmp_path, "detection", shards=1, per_shard=6)
    tar = tmp_path / "shards/v0/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-2048])
    with pytest.raises(UserError, match=r"000000\.tar has \d+ bytes, but the manifest says"):
        read(Stream.open(scenes(url)), 1)
    tar.unlink()
    with pytest.raises(UserError, match=r"000000\.tar is missing"):
        read(Stream.open(scenes(url)), 1)
    tar.with_suffix(".parquet").unlink()
    with pytest.raises(UserError, match=r"v0/000000\.parquet is missing"):
        read(Stream.open(scenes(url)), 1)


def test_a_fault_of_the_program_names_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Renderer, "_crop", fail)
    stream = Stream.open(scenes(simple_set(tmp_path, "detection", shards=1, per_shard=6)))
    with pytest.raises(ZeroDivisionError) as caught:
        read(stream, 1)
    (note,) = caught.value.__notes__
    assert "crowd/train/0000" in note
    assert "000000.tar at byte" in note
    assert not stream_threads()


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_leaving_early_leaves_no_thread(tmp_path: Path) -> None:
    stream = Stream.open(scenes(simple_set(tmp_path, "detection", shards=2, per_shard=6)))
    with stream.batches() as batches:
        next(batches)
        assert stream_threads()
    assert not stream_threads()
    with pytest.raises(StopIteration):
        next(batches)
    assert stream.stats.wait_s > 0


def test_batches_handed_over_are_not_written_again(tmp_path: Path) -> None:
    stream = Stream.open(scenes(simple_set(tmp_path, "detection", shards=2, per_shard=6)))
    with stream.batches(0, 8) as batches:
        kept = [(batch, batch.scenes and batch.scenes.views[0].pixels.clone()) for batch in batches]
    for batch, pixels in kept:
        assert batch.scenes is not None
        assert pixels is not None
        assert torch.equal(batch.scenes.views[0].pixels, pixels)


def test_each_epoch_reads_the_next_variant(tmp_path: Path) -> None:
    variants = [[canvas_items(4, variant=variant)] for variant in range(3)]
    config = StreamConfig(
        canvases=(MixtureEntry(shards=write_shard_set(tmp_path, variants), weight=1),),
        canvas_batch=4,
        canvas_size=(96, 64),
        views={"flip": 0, "canvas_side": (1, 1)},  # type: ignore[arg-type]
    )
    lefts = []
    for batch in read(Stream.open(config), 6):
        assert batch.canvases is not None
        lefts.append(set(batch.canvases.views[0].boxes[:, 0].tolist()))
    assert lefts == [{8.0}, {12.0}, {16.0}] * 2


def test_a_scene_without_people_is_a_scene(tmp_path: Path) -> None:
    items = [relabel(item, persons=()) for item in scene_items(4)]
    (batch,) = read(Stream.open(scenes(write_shard_set(tmp_path, [[items]]))), 1)
    assert batch.scenes is not None
    assert batch.scenes.views[0].boxes.shape == (0, 4)
    assert batch.scenes.image.shape == (0,)


def test_shapes_and_padding_of_a_batch(tmp_path: Path) -> None:
    url = simple_set(tmp_path, "detection", shards=1, per_shard=6)
    (batch,) = read(Stream.open(scenes(url, views={"scene_scale": (0.5, 0.5)})), 1)
    images = batch.scenes
    assert images is not None
    assert images.image.tolist() == [n for n in range(4) for _ in range(3)]
    assert images.person.tolist() == [0, 1, 2] * 4
    assert images.identity.tolist() == [-1] * 12
    for view in images.views:
        assert view.pixels.shape == (4, 48, 64, 3)
        assert view.pixels.dtype == torch.uint8
        assert view.boxes.dtype == torch.float32
        assert view.valid.tolist() == [[24, 32]] * 4
        padding = view.pixels.clone()
        padding[:, :24, :32] = torch.tensor([124, 116, 104], dtype=torch.uint8)
        assert (padding == torch.tensor([124, 116, 104])).all()
        assert view.use.reshape(4, 3)[:, 2].tolist() == [Use.IGNORE] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scene_batch": 0}, "the stream is empty"),
        ({"canvas_batch": 4}, "`canvases` names no shard set"),
        ({"canvas_batch": 6, "canvas_group": 4}, "not a multiple of canvas_group 4"),
        ({"lanes": 3}, "lanes 3 does not divide the 4 turns"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    url = simple_set(tmp_path, "detection", shards=1, per_shard=4)
    with pytest.raises(UserError, match=message):
        Stream.open(scenes(url).model_copy(update=settings))


def test_shard_sets_that_do_not_fit(tmp_path: Path) -> None:
    crowd = simple_set(tmp_path / "crowd", "detection", shards=1, per_shard=4)
    msmt = simple_set(tmp_path / "msmt", "reid", shards=1, per_shard=4)
    with pytest.raises(UserError, match="which was made for reid"):
        Stream.open(scenes(msmt))
    with pytest.raises(UserError, match="no shard set at"):
        Stream.open(scenes(str(tmp_path / "nowhere")))
    entry = MixtureEntry(shards=crowd, weight=1)
    with pytest.raises(UserError, match="names crowd/train twice"):
        Stream.open(scenes(crowd).model_copy(update={"scenes": (entry, entry)}))
    moved = tmp_path / "moved"
    moved.symlink_to(crowd)
    with pytest.raises(UserError, match=f"twice, at {crowd} and at {moved}.* one set"):
        Stream.open(
            scenes(crowd).model_copy(
                update={"scenes": (entry, MixtureEntry(shards=str(moved), weight=1))}
            )
        )
    other = simple_set(tmp_path / "other", "detection", shards=1, per_shard=4, dataset="other")
    few = MixtureEntry(shards=other, weight=1)
    with pytest.raises(UserError, match=r"other/train a weight of 1 out of .* is 1 in 8,192"):
        Stream.open(
            scenes(crowd).model_copy(
                update={"scenes": (MixtureEntry(shards=crowd, weight=1e6), few)}
            )
        )
    empty = write_shard_set(
        tmp_path / "empty", [[[replace(i, status=QUARANTINED) for i in scene_items(2)]]]
    )
    with pytest.raises(UserError, match="holds no sample"):
        Stream.open(scenes(empty))
    index = Path(crowd) / "shards/v0/000000.parquet"
    index.write_bytes(index.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"not the index that {MANIFEST} names"):
        Stream.open(scenes(crowd)).ids(0)


def test_an_epoch_opens_no_shard_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each of 16 lanes it jumps between 12 shards."""

    def open_tar(self: Tars, shard: Shard, can_wait: Callable[[], bool]) -> Tar:
        opened.append(int(shard.name))
        return honest(self, shard, can_wait)

    opened: list[int] = []
    honest = Tars._open_tar
    monkeypatch.setattr(Tars, "_open_tar", open_tar)
    url = simple_set(tmp_path, "detection", shards=192, per_shard=2)
    stream = Stream.open(scenes(url, scene_batch=16, block=12))
    task = stream.tasks["detection"]
    for position in range(2 * 192):
        place = task.order.at(position)
        task.readers[0].read(0, place.shard, place.slot)
    assert sorted(opened) == list(range(192))


def test_two_variants_open_twice_as_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each of 8 lanes it jumps between 4 shards, each of them in 2 variants."""

    def counted(name: str, honest: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return honest(*arguments)

        return call

    calls = {"tars": 0, "indexes": 0}
    monkeypatch.setattr(Tars, "_open_tar", counted("tars", Tars._open_tar))
    monkeypatch.setattr(SampleReader, "_load_index", counted("indexes", SampleReader._load_index))
    variants = [canvas_items(32 * 4, variant=variant) for variant in range(2)]
    url = write_shard_set(
        tmp_path, [[items[s * 4 : s * 4 + 4] for s in range(32)] for items in variants]
    )
    config = StreamConfig(
        canvases=(MixtureEntry(shards=url, weight=1),),
        canvas_batch=16,
        canvas_size=(48, 32),
        views={"two_variants": True},  # type: ignore[arg-type]
    )
    read(Stream.open(config), 8)  # an epoch
    assert calls == {"tars": 2 * 32, "indexes": 2 * 32}


def test_a_stream_opens_as_many_files_as_the_system_grants(tmp_path: Path) -> None:
    url = simple_set(tmp_path, "detection", shards=1, per_shard=4)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] // 2, before[1]))
        stream = Stream.open(scenes(url))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        # none but stdin, stdout and stderr: whatever older objects close meanwhile gives no room
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        with pytest.raises(UserError, match=r"cannot open .*000000.*`ulimit -n`"):
            stream.tasks["detection"].readers[0].read(0, 0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_tar_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def size(self: Location) -> int:
        asked.append(self.url)
        return honest(self)

    asked: list[str] = []
    honest = Location.size
    monkeypatch.setattr(Location, "size", size)
    url = simple_set(tmp_path, "detection", shards=3, per_shard=1)
    reader = SampleReader(ShardSet(url), open_shards=1)
    for shard in (0, 1, 2, 0, 1, 2):
        reader.read(0, shard, 0)
    assert len(asked) == len(set(asked)) == 3


def test_annotations_survive_the_helper() -> None:
    """The fixture writes what the adapters write."""
    for item in (*scene_items(1), *canvas_items(1)):
        assert Annotation.from_json(item.annotation.to_json()) == item.annotation
