"""A run that begins with the weights of another: what it takes over, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest
import torch
from models import tiny_config
from ranks import Script, launch
from searchset import model_of_known_norms, write_run

from launch import finetune, pretrain
from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.settings import MixtureEntry, StreamConfig
from training.hybrid import HybridConfig
from training.model.norm import CrossRankNorm, FrozenNorm
from training.model.person_search import PersonSearch
from training.run import build_model, load_run, open_trained
from training.run_config import RunConfig, StartConfig

BACKBONE = ("backbone.", "head.layer4.")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PersonSearch]:
    """A run and its model, whose norms have seen something."""
    model = model_of_known_norms()
    return write_run(tmp_path_factory.mktemp("trained"), model), model


def beginning(weights: Path, part: str, hybrid: HybridConfig | None = None) -> PersonSearch:
    """The model that fine-tuning begins with."""
    unread = MixtureEntry(shards="unread", weight=1)
    stream = StreamConfig(scenes=(unread,), scene_batch=2, scene_size=(64, 96))
    start = StartConfig.model_validate({"weights": str(weights), "part": part})
    hybrid = hybrid or tiny_config()
    config = RunConfig(run="unused", steps=1, stream=stream, hybrid=hybrid, start=start)
    return build_model(config, Identities(), {"detection": ("target",)}).search


def equal_names(a: PersonSearch, b: PersonSearch) -> set[str]:
    other = b.state_dict()
    return {name for name, tensor in a.state_dict().items() if torch.equal(tensor, other[name])}


def test_a_whole_model(trained: tuple[Path, PersonSearch]) -> None:
    run, model = trained
    search = beginning(run, "model")
    assert equal_names(search, model) == set(model.state_dict())
    loaded = search.first_weights
    assert loaded is not None and loaded.unused == () and loaded.origin.endswith(", model")


def test_a_backbone_leaves_the_heads_as_they_are_without_it(
    trained: tuple[Path, PersonSearch],
) -> None:
    run, model = trained
    search = beginning(run, "backbone")
    names = set(model.state_dict())
    backbone = {name for name in names if name.startswith(BACKBONE)}
    assert backbone <= equal_names(search, model)
    torch.manual_seed(0)
    untrained = PersonSearch(tiny_config().model, seed=0)
    assert names - backbone <= equal_names(search, untrained)
    assert not torch.equal(search.rpn.head.cls_logits.weight, model.rpn.head.cls_logits.weight)


def test_frozen_norms_take_the_statistics_of_scenes(trained: tuple[Path, PersonSearch]) -> None:
    run, model = trained
    hybrid = tiny_config()
    frozen = hybrid.model.backbone.model_copy(update={"norm": "frozen"})
    hybrid = hybrid.model_copy(
        update={"model": hybrid.model.model_copy(update={"backbone": frozen})}
    )
    search = beginning(run, "model", hybrid)
    norms = dict(search.backbone.named_modules())
    pairs = [
        (norms[n], m) for n, m in model.backbone.named_modules() if isinstance(m, CrossRankNorm)
    ]
    assert pairs
    for own, theirs in pairs:
        assert isinstance(own, FrozenNorm)
        assert torch.equal(own.running_mean, theirs.running_mean)


def test_settings_that_weights_were_not_trained_for_are_named(
    trained: tuple[Path, PersonSearch],
) -> None:
    hybrid = tiny_config()
    detector = hybrid.model.detector.model_copy(update={"anchor_sizes": (30, 60), "proposals": 8})
    model = hybrid.model.model_copy(update={"detector": detector})
    other = hybrid.model_copy(update={"model": model})
    with pytest.raises(UserError, match=r"`start.weights`: .*anchor_sizes.0 24.0 -> 30.0") as error:
        beginning(trained[0], "model", other)
    assert "proposals" not in str(error.value)
    beginning(trained[0], "backbone", other)
    with pytest.raises(UserError, match="no trained weights in /nowhere"):
        open_trained("/nowhere")


def test_weights_are_looked_at_before_ranks_meet(
    tiny_run: Path, trained: tuple[Path, PersonSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--set", f"start.weights={trained[0]}", "--set", f"run={trained[0].parent / 'new'}"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config", str(tiny_run), *settings])
    monkeypatch.setattr(pretrain, "init_distributed", lambda config: pytest.fail("ranks met"))
    with pytest.raises(UserError, match="was trained with other settings"):
        pretrain.main()


def test_settings_of_pre_training_are_refused(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--config", str(tiny_run)])
    wrong = r"stream.canvas_batch, hybrid.weights.similarity, hybrid.alignment.tasks must be 0"
    with pytest.raises(UserError, match=wrong):
        finetune.main()


@pytest.mark.launched
def test_fine_tuning_on_two_ranks(tiny_run: Path, undisturbed_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (
        f"run={run}",
        "steps=2",
        "stream.canvas_batch=0",
        "hybrid.weights.similarity=0",
        "hybrid.alignment.tasks=[]",
        f"start.weights={undisturbed_run}",
    )
    arguments = [part for setting in settings for part in ("--set", setting)]
    script = Script(("--config", str(tiny_run), *arguments), "finetune")
    launch(2, script, tmp_path / "ranks")
    began = json.loads((run / "weights.json").read_text())
    assert began["origin"] == f"{undisturbed_run}/checkpoints/step-00000006, model"
    ended = load_run(run)
    assert ended.config.start == StartConfig(weights=began["origin"].removesuffix(", model"))
    trained = ended.model()
    assert trained.predictor is None and len(trained.alignment) == 0

    again = Script(
        (*script.arguments, "--set", "steps=3", "--resume", "--allow-change"), "finetune"
    )
    launch(1, again, tmp_path / "again")
    assert load_run(run).config.start == ended.config.start
    assert json.loads((run / "weights.json").read_text()) == began
