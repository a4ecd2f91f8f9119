"""Finished shard sets out of fake releases, written in this process: what verify, forget and inspect read."""

from pathlib import Path

from fakes import FakeAdapter

from pipeline.shards import Manifest
from pipeline.stores.store import Location
from sharding.convert import Conversion
from sharding.output import finish
from sharding.plan import PlanConfig, make_plan
from sharding.source import Source
from sharding.writer import ShardJob, write_shard

MEMORY_BYTES = 1 << 30


def write_finished_set(adapter: FakeAdapter, out: str, **settings: object) -> Manifest:
    """The sharding job without Ray. Settings are those of PlanConfig."""
    source, config = Source("/nowhere"), PlanConfig(**settings)
    listing = adapter.list_samples(source, "train")
    plan = make_plan(adapter, "train", listing, config)
    conversion = Conversion(adapter, source, "train", config, plan.variants, MEMORY_BYTES)
    for shard in plan.shards:
        write_shard(ShardJob(conversion, shard, out, plan.hash, plan.description()))
    return finish(Location(out), plan, adapter, listing)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its relative name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
