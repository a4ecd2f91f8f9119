"""Statistics measured anew are those of the scenes that were looked at, and of nothing else."""

import pytest
import torch
from models import tiny_config
from shardset import simple_set

from pipeline.errors import UserError
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.stream import Stream
from training.export.re_estimation import re_estimate
from training.hybrid import HybridModel
from training.run import build_model
from training.run_config import RunConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = tmp_path_factory.mktemp("re_estimation")
    stream = StreamConfig(
        scenes=(MixtureEntry(shards=simple_set(root / "crowd", "detection", 2, 6), weight=1),),
        canvases=(MixtureEntry(shards=simple_set(root / "mars", "reid", 2, 6), weight=1),),
        scene_batch=4,
        canvas_batch=4,
        scene_size=(64, 96),
        canvas_size=(64, 48),
    )
    return RunConfig(run=str(root / "run"), steps=4, stream=stream, hybrid=tiny_config())


def model_of(config: RunConfig) -> tuple[HybridModel, Stream]:
    stream = Stream.open(config.stream)
    return build_model(config, stream.identities, stream.domains), stream


@torch.no_grad()
def test_a_mean_over_batches_replaces_what_was_there(config: RunConfig) -> None:
    model, stream = model_of(config)
    norm = model.search.backbone.bn1
    norm.running_mean.fill_(100.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = re_estimate(model.search, config, stream.identities, slices=2, scenes=5)
    assert seen == 6, "three batches of two scenes"

    only_scenes = config.stream.model_copy(update={"canvas_batch": 0})
    same = Stream.open(only_scenes, accumulation=2, identities=stream.identities)
    means = []
    with same.batches(0, 2) as batches:
        for batch in list(batches)[:3]:
            assert batch.scenes is not None
            pixels = torch.cat([view.pixels for view in batch.scenes.views])
            found = model.search.backbone.conv1(model.search.normalise(pixels))
            means.append(found.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))

    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert "search.head.layer4.0.bn1.running_var" in changed
    assert all(name.endswith(("running_mean", "running_var", "tracked")) for name in changed)
    assert not any("canvas" in name for name in changed)


def test_frozen_statistics_and_streams_without_scenes_are_refused(config: RunConfig) -> None:
    model, stream = model_of(config)
    hybrid = config.hybrid
    backbone = hybrid.model.backbone.model_copy(update={"norm": "frozen"})
    searched = hybrid.model.model_copy(update={"backbone": backbone})
    frozen = config.model_copy(update={"hybrid": hybrid.model_copy(update={"model": searched})})
    with pytest.raises(UserError, match="Leave --re-estimate out"):
        re_estimate(model.search, frozen, stream.identities, slices=1, scenes=1)
    empty = config.model_copy(
        update={"stream": config.stream.model_copy(update={"scene_batch": 0})}
    )
    with pytest.raises(UserError, match="needs scenes"):
        re_estimate(model.search, empty, stream.identities, slices=1, scenes=1)
