"""What the stream is measured on: shard sets of generated releases, and the same scenes for its peers."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.benchmarks import releases
from pipeline.stores.store import Location
from sharding.datasets import ADAPTERS
from sharding.output import finish
from sharding.plan import PlanConfig
from sharding.prepare import prepare
from sharding.recipe import SetRequest
from sharding.source import Source
from sharding.writer import write_shard


@dataclass(frozen=True)
class Sets:
    scenes: str
    canvases: str
    """URLs of shard sets."""
    tars: tuple[str, ...]
    """Of the scenes, for webdataset."""
    streaming: Path | None
    litdata: Path | None
    """The scenes in these formats; None where the package is not installed."""


def write_sets(folder: Path, scenes: int, crops: int, shard_bytes: int) -> Sets:
    releases.write_scenes(folder / "scenes", scenes)
    releases.write_crops(folder / "crops", crops)
    header = PlanConfig.model_validate({"check": "header", "shard_bytes": shard_bytes})
    scene_set = _write_set(folder, "crowdhuman", "scenes", header)
    canvas_set = _write_set(folder, "msmt17", "crops", PlanConfig(shard_crops=max(4, crops // 8)))
    tars = tuple(sorted(map(str, scene_set.glob("shards/v0/*.tar"))))
    return Sets(
        scenes=str(scene_set),
        canvases=str(canvas_set),
        tars=tars,
        streaming=_write_streaming(folder / "streaming", tars, shard_bytes),
        litdata=_write_litdata(folder / "litdata", tars, shard_bytes),
    )


def _write_set(folder: Path, dataset: str, release: str, config: PlanConfig) -> Path:
    """As the sharding job does, without Ray."""
    out, adapter = folder / "sets" / release, ADAPTERS[dataset]
    prepared = prepare(
        SetRequest(adapter, Source(str(folder / release)), "train", str(out), config)
    )
    for job in prepared.jobs():
        write_shard(job)
    finish(Location(str(out)), prepared.plan, adapter, prepared.listing)
    return out


def _write_streaming(out: Path, tars: Sequence[str], shard_bytes: int) -> Path | None:
    if importlib.util.find_spec("streaming") is None:
        return None
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "json": "bytes"}
    with MDSWriter(out=str(out), columns=columns, size_limit=shard_bytes) as writer:
        for record in _records(tars):
            writer.write(record)
    return out


def _write_litdata(out: Path, tars: Sequence[str], shard_bytes: int) -> Path | None:
    if importlib.util.find_spec("litdata") is None:
        return None
    from litdata.streaming import Cache

    cache = Cache(str(out), chunk_bytes=shard_bytes)
    for number, record in enumerate(_records(tars)):
        cache[number] = record
    cache.done()
    cache.merge()
    return out


def _records(tars: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Image and annotation of each sample, coded, as they lie in the tars."""
    import webdataset

    for sample in webdataset.WebDataset(list(tars), shardshuffle=False):
        yield {"jpg": sample["jpg"], "json": sample["json"]}
