"""Other tools read our shards, the stream reads theirs: `make test-interop`, with the peers installed."""

import io
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import simplejpeg
import webdataset
from finished_set import files
from PIL import Image

from pipeline.__main__ import main
from pipeline.annotation import Annotation
from pipeline.foreign import indexing
from pipeline.samples import SampleReader
from pipeline.settings import StreamConfig
from pipeline.shards import OK, ShardSet
from pipeline.stream import Stream
from sharding.cluster import ray_session
from sharding.job import write_sets
from sharding.miniature import TruthImage
from sharding.plan import PlanConfig
from sharding.recipe import make_request, parse_settings
from sharding.upkeep.verify import verify
from tests.shardset import picture

SETS = {"crowdhuman": "train", "msmt17": "train_val"}
SETTINGS = ("shard_crops=9", "shard_bytes=60000", "canvas.size=[384,192]")

Files = dict[str, tuple[bytes, bytes]]
"""Image and JSON of each sample, by key."""


class Written(NamedTuple):
    """A set of the sharding job: scenes or canvases."""

    url: str
    tars: list[str]
    """Of the first variant."""
    samples: Files


@pytest.fixture(scope="module", params=SETS)
def written(request: pytest.FixtureRequest, sets: dict[str, Written]) -> Written:
    return sets[request.param]


@pytest.fixture(scope="module")
def sets(
    miniature: tuple[Path, list[TruthImage]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Written]:
    out = tmp_path_factory.mktemp("sets")
    config = parse_settings(PlanConfig, SETTINGS)
    requests = [
        make_request(name, str(miniature[0] / name), split, str(out / name), config)
        for name, split in SETS.items()
    ]
    outcomes = write_sets(requests, workers=2)
    assert not [outcome.error for outcome in outcomes if outcome.error]
    return {name: _read(str(out / name)) for name in SETS}


def _read(url: str) -> Written:
    """As the index says, with nothing but reads of byte ranges."""
    shard_set, samples = ShardSet(url), {}
    shards = shard_set.shards()
    assert len(shards) > 1
    for shard in shards:
        data = shard_set.tar(shard).read()
        for row in shard_set.index(shard).to_pylist():
            if row["status"] == OK:
                image, text = (
                    data[row[f"{member}_offset"] :][: row[f"{member}_size"]]
                    for member in ("image", "json")
                )
                samples[row["key"]] = (image, text)
    return Written(url, [shard_set.tar(shard).path for shard in shards], samples)


def _files(samples: Iterable[dict[str, Any]]) -> Files:
    return {one["__key__"]: (one.get("jpg") or one["png"], one["json"]) for one in samples}


def test_webdataset(written: Written) -> None:
    assert _files(webdataset.WebDataset(written.tars, shardshuffle=False)) == written.samples
    decoded = webdataset.WebDataset(written.tars, shardshuffle=False).decode("rgb8")
    count = 0
    for sample in decoded:
        image, text = written.samples[sample["__key__"]]
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
        assert np.array_equal(sample.get("jpg", sample.get("png")), pixels)
        assert sample["json"] == json.loads(text)
        assert Annotation.model_validate(sample["json"]).key == sample["__key__"]
        count += 1
    assert count == len(written.samples)


READ_WITH_ENERGON = """
import hashlib, json, sys
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig
from megatron.energon import get_loader, get_val_dataset, stateless

@stateless
def whole(sample):
    return sample

class Encoder(DefaultTaskEncoder):
    decoder = None
    cookers = [Cooker(whole)]

workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
samples = get_val_dataset(sys.argv[1], worker_config=workers, batch_size=None, task_encoder=Encoder())
for sample in get_loader(samples):
    image = sample.get("jpg") or sample["png"]
    print(json.dumps([sample["__key__"], image.hex(), sample["json"].hex()]))
"""


def test_megatron_energon(written: Written, tmp_path: Path) -> None:
    """Over links to the tars: energon's own files stay out of the shard set."""
    for tar in written.tars:
        (tmp_path / Path(tar).name).symlink_to(tar)
    _prepare(tmp_path)
    command = [sys.executable, "-c", READ_WITH_ENERGON, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(written.samples)
    found = {key: (bytes.fromhex(image), bytes.fromhex(text)) for key, image, text in lines}
    assert found == written.samples
    assert verify(written.url).problems == []


def test_verify_names_what_energon_leaves_in_a_set(written: Written) -> None:
    folder = Path(written.tars[0]).parent
    before = set(folder.rglob("*"))
    _prepare(folder)
    left = {file for file in folder.rglob("*") if file.is_file() and file not in before}
    problems = verify(written.url).problems
    for file in left:
        name = file.relative_to(written.url).as_posix()
        assert f"{name}: does not belong to this shard set" in problems
        file.unlink()
    assert len(problems) == len(left)
    assert verify(written.url).problems == []


def _prepare(folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("energon")), "prepare", str(folder)]
    command += ["--non-interactive", "--split-ratio", "0,1,0", "--sample-type", "CrudeWebdataset"]
    command += ["--num-workers", "1", "--no-progress"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with ray_session(workers=2):
        import ray.data

        yield ray


def test_ray_data(written: Written, ray: Any) -> None:
    rows = ray.data.read_webdataset(written.tars, decoder=None).take_all()
    assert len(rows) == len(written.samples)
    assert _files(rows) == written.samples


def _jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(picture(96, 64, seed), 90)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes as img2dataset lays them out, crops as webdataset's ShardWriter does."""
    root = tmp_path_factory.mktemp("foreign")
    (root / "scenes").mkdir()
    for tar in range(3):
        file = root / f"scenes/{tar:05d}.tar"
        with webdataset.TarWriter(str(file), encoder=False) as scenes:
            for number in range(4):
                seed = 10_000 * tar + number
                record = {
                    "url": f"https://example.org/{seed}.jpg",
                    "caption": "two people",
                    "key": f"{seed:09d}",
                    "status": "success",
                    "error_message": None,
                    "width": 64,
                    "height": 96,
                    "exif": "{}",
                    "people": [{"bbox": [4, 5, 20, 60]}, {"bbox": [30, 10, 25, 70]}],
                }
                text = json.dumps(record, indent=4).encode()
                members = {"jpg": _jpeg(seed), "txt": b"two people", "json": text}
                scenes.write({"__key__": f"{seed:09d}", **members})
        file.with_suffix(".parquet").write_bytes(b"img2dataset's own")
        (root / f"scenes/{tar:05d}_stats.json").write_text("{}")
    (root / "crops").mkdir()
    with webdataset.ShardWriter(str(root / "crops/train-%06d.tar"), maxcount=5, verbose=0) as crops:
        for number in range(12):
            crop = {"jpg": _jpeg(number), "json": {"pid": number // 2}, "cls": number // 2}
            crops.write({"__key__": f"sample{number:06d}", **crop})
    return root


def test_processes_index_alike(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ["index", str(foreign / "crops"), "--dataset", "shop", "--split", "train"]
    index += ["--task", "reid", "--whole-image", "--workers", "2", "--out"]
    main([*index, str(tmp_path / "threads")])
    monkeypatch.setattr(indexing, "ALONE_BYTES", 0)
    main([*index, str(tmp_path / "processes")])
    assert files(tmp_path / "threads") == files(tmp_path / "processes")


def test_the_stream_reads_their_tars(foreign: Path, tmp_path: Path) -> None:
    scenes, crops = foreign / "scenes", tmp_path / "crops"
    index = ["index", str(scenes), "--dataset", "web", "--split", "train", "--task", "detection"]
    main([*index, "--boxes", "people.bbox", "--box-format", "xywh", "--check", "full"])
    index = ["index", str(foreign / "crops"), "--dataset", "shop", "--split", "train"]
    main([*index, "--task", "reid", "--whole-image", "--identity", "pid", "--out", str(crops)])
    for url, count in ((scenes, 12), (crops, 12)):
        assert verify(str(url)).problems == []
        assert ShardSet(str(url)).manifest.samples == count
    reader = SampleReader(ShardSet(str(crops)))
    read = [
        reader.read(0, shard, slot)
        for shard, slots in enumerate(reader.slots)
        for slot in range(slots)
    ]
    assert [sample.image for sample in read] == [_jpeg(number) for number in range(12)]
    config = StreamConfig.model_validate(
        {
            "scenes": [{"shards": str(scenes), "weight": 1}],
            "canvases": [{"shards": str(crops), "weight": 1}],
            "scene_batch": 4,
            "canvas_batch": 4,
            "scene_size": [48, 64],
            "canvas_size": [48, 32],
        }
    )
    keys: set[str] = set()
    with Stream.open(config).batches(0, 6) as batches:
        for batch in batches:
            assert batch.scenes is not None and batch.canvases is not None
            keys.update(batch.scenes.keys, batch.canvases.keys)
            assert int((batch.canvases.identity >= 0).sum()) == 4
    assert len(keys) == 24
