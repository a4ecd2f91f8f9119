"""The file that a backbone began with is needed once: a run goes on and is read without it."""

import json
from pathlib import Path

import pytest
import torch
from ranks import command, launch, tiny_run_file

from pipeline.errors import UserError
from tests.test_backbones import built, file_of
from training.run import load_run


@pytest.mark.launched
def test_a_run_goes_on_without_the_file_that_it_began_with(tmp_path: Path) -> None:
    weights, run = tmp_path / "weights.pth", tmp_path / "run"
    file_of(built("resnet18").net, weights)
    backbone = "hybrid.model.backbone"
    settings = [f"{backbone}.weights={weights}", f"{backbone}.freeze_stem=true"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    run_file = tiny_run_file(tmp_path)
    launch(1, command(run_file, run, *arguments, "--set", "steps=2"), tmp_path / "first")
    began = json.loads((run / "weights.json").read_text())
    first = load_run(run).model().search

    weights.unlink()
    on = (*arguments, "--set", "steps=4", "--resume", "--allow-change")
    launch(1, command(run_file, run, *on), tmp_path / "second")
    assert began["origin"] == str(weights)
    assert json.loads((run / "weights.json").read_text()) == began
    trained = load_run(run).model()
    assert not trained.search.backbone.conv1.weight.requires_grad
    assert torch.equal(trained.search.backbone.conv1.weight, first.backbone.conv1.weight)
    assert not torch.equal(
        trained.search.rpn.head.conv[0][0].weight, first.rpn.head.conv[0][0].weight
    )
    with pytest.raises(UserError, match="no file"):
        load_run(run).model(trained=False)
