"""Weights of another run as first ones: their norms' statistics, what is frozen, whose data they are of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import tiny_config
from pydantic import ValidationError
from searchset import model_of_known_norms, write_run
from test_start import beginning

from launch import export
from launch.reporting.summary import in_short
from pipeline.config import dump_config
from training.evaluation.weights import load_weights
from training.hybrid import HybridConfig
from training.model.norm import FrozenNorm
from training.model.person_search import PersonSearch
from training.run import RunFolder, load_run
from training.run_config import RunConfig, StartConfig


@pytest.fixture(scope="module")
def model() -> PersonSearch:
    return model_of_known_norms()


@pytest.fixture(scope="module")
def trained(model: PersonSearch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("trained"), model)


def with_backbone(**settings: object) -> HybridConfig:
    tree = tiny_config().model_dump()
    tree["model"]["backbone"].update(settings)
    return HybridConfig.model_validate(tree)


@pytest.mark.parametrize(("scenes_seen", "kind"), [(7, ""), (0, "canvas_")])
def test_statistics_are_those_of_canvases_where_no_scenes_were_seen(
    model: PersonSearch,
    tmp_path: Path,
    scenes_seen: int,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = write_run(tmp_path, model, scenes_seen=scenes_seen)
    frozen = beginning(run, "model", with_backbone(norm="frozen")).backbone.bn1
    evaluated = load_weights(run).model.backbone.bn1
    assert isinstance(frozen, FrozenNorm)
    for norm in (frozen, evaluated):
        for name in ("running_mean", "running_var"):
            wanted = model.backbone.bn1.get_buffer(kind + name)
            assert torch.equal(norm.get_buffer(name), wanted)
    monkeypatch.setattr("sys.argv", ["export.py", str(run), "--out", str(tmp_path / "w.pth")])
    export.main()
    exported = torch.load(tmp_path / "w.pth", weights_only=True)
    assert torch.equal(exported["bn1.running_var"], wanted)


@pytest.mark.parametrize("part", ["model", "backbone"])
def test_the_stem_of_another_run_is_frozen_like_a_files(trained: Path, part: str) -> None:
    for freeze in (True, False):
        search = beginning(trained, part, with_backbone(freeze_stem=freeze))
        still = {name for name, p in search.named_parameters() if not p.requires_grad}
        stem = {"backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"}
        assert still == (stem if freeze else set())


def test_frozen_norms_need_trained_weights_of_whichever_origin(trained: Path) -> None:
    stream, start = load_run(trained).config.stream, StartConfig(weights=str(trained))
    for norm in ("frozen", "re_estimated"):
        hybrid = with_backbone(norm=norm)
        RunConfig(run="unused", steps=1, stream=stream, hybrid=hybrid, start=start)
        with pytest.raises(ValidationError, match=f"norm: {norm}` needs trained weights"):
            RunConfig(run="unused", steps=1, stream=stream, hybrid=hybrid)


def begin_with(run: Path, weights: Path, model: PersonSearch) -> None:
    """A run like launch/finetune.py's, in a folder of its own."""
    write_run(run.parent, model)
    folder = RunFolder(run)
    config = load_run(run).config.model_copy(update={"start": StartConfig(weights=str(weights))})
    named = folder.with_start(config, going_on=False)
    (run / "config.yaml").write_text(dump_config(named))
    folder.record_weights(beginning(weights, "model").first_weights)


def test_data_of_all_runs_before_bind_though_their_folders_are_gone(
    model: PersonSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (tmp_path / name / "run" for name in ("a", "b", "c"))
    write_run(first.parent, model)
    stream = first / "stream.json"
    manifests = json.loads(stream.read_text())
    manifests["manifests"]["ecp/day_train"] = {"manifest": "gone", "generation": 0}
    stream.write_text(json.dumps(manifests))
    begin_with(second, first, model)
    begin_with(third, second, model)
    for folder in ("a", "b"):
        shutil.rmtree(tmp_path / folder)
    monkeypatch.setattr("sys.argv", ["export.py", str(third), "--out", str(tmp_path / "w.pth")])
    export.main()
    card = (tmp_path / "w.md").read_text()
    own = next(iter(json.loads((third / "stream.json").read_text())["manifests"]))
    assert card.count(f"| {own} | 2 | generated |") == 3
    assert "| ecp/day_train |  | not known" in card
    assert "EuroCity Persons forbids commercial use" in card
    assert card.count("It began with weights of run (") == 2
    assert "The backbone began with random weights." in card
    assert "from run, step-00000007, model" in in_short(load_run(third), [], [])
