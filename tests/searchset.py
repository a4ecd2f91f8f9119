"""Shard sets of the miniature's person-search benchmarks, written in this process."""

from pathlib import Path

from pipeline.shards import Manifest
from pipeline.stores.store import Location
from sharding.convert import Conversion
from sharding.datasets import ADAPTERS
from sharding.output import finish
from sharding.plan import PlanConfig, make_plan
from sharding.source import Source
from sharding.writer import ShardJob, write_shard

MEMORY_BYTES = 1 << 30
TEST_SPLITS = {"prw": "test", "cuhk_sysu": "test", "posetrack21": "val"}


def write_search_set(miniature: Path, name: str, out: Path, **settings: object) -> Manifest:
    """The sharding job without Ray, of the split that holds a benchmark's gallery and queries."""
    adapter, split = ADAPTERS[name], TEST_SPLITS[name]
    source, config = Source(str(miniature / name)), PlanConfig(**settings)
    listing = adapter.list_samples(source, split)
    plan = make_plan(adapter, split, listing, config)
    conversion = Conversion(adapter, source, split, config, plan.variants, MEMORY_BYTES)
    for shard in plan.shards:
        write_shard(ShardJob(conversion, shard, str(out), plan.hash, plan.description()))
    return finish(Location(str(out)), plan, adapter, listing)
