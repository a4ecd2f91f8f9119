"""Shard sets of the miniature's person-search benchmarks, and a run whose model searches in them."""

from pathlib import Path

import torch
from models import tiny_config
from shardset import simple_set

from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.shards import Manifest
from pipeline.stores.store import Location
from pipeline.stream import Stream
from sharding.convert import Conversion
from sharding.datasets import ADAPTERS
from sharding.output import finish
from sharding.plan import PlanConfig, make_plan
from sharding.source import Source
from sharding.writer import ShardJob, write_shard
from training.checkpoint import State
from training.model.norm import CrossRankNorm
from training.model.person_search import PersonSearch
from training.run import RunFolder, build_model
from training.run_config import RunConfig

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


def model_of_known_norms() -> PersonSearch:
    """Whose norms know scenes and canvases apart."""
    torch.manual_seed(1)
    model = PersonSearch(tiny_config().model, seed=0)
    for module in model.modules():
        if isinstance(module, CrossRankNorm):
            module.running_mean.normal_()
            module.canvas_running_mean.normal_()
            module.canvas_running_var.uniform_(0.5, 1.5)
    return model


def write_run(
    folder: Path, model: PersonSearch, scene_size: tuple[int, int] = (64, 96), scenes_seen: int = 7
) -> Path:
    """The folder of a run that has trained `model`; `scenes_seen`: by its norms, in steps."""
    stream = StreamConfig(
        scenes=(MixtureEntry(shards=simple_set(folder / "data", "detection", 1, 2), weight=1),),
        scene_batch=2,
        scene_size=scene_size,
    )
    run = folder / "run"
    hybrid = tiny_config().model_copy(update={"model": model.config})
    config = RunConfig(run=str(run), steps=7, stream=stream, hybrid=hybrid)
    opened = Stream.open(config.stream)
    RunFolder(run).create(config, opened)
    whole = build_model(config, opened.identities, opened.domains)
    whole.search.load_state_dict(model.state_dict())
    for module in whole.modules():
        if isinstance(module, CrossRankNorm):
            module.num_batches_tracked.fill_(scenes_seen)
    state = State(step=7, images=14, stream_digest="", tables_digest="", sample_digest="")
    RunFolder(run).checkpoints(config.checkpoint).write(state, whole.state_dict(), {})
    return run
