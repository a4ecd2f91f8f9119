"""The file that a backbone began with is needed once: a run goes on and is read without it."""

import json
from pathlib import Path

import pytest
import torch
from ranks import BACKBONE, command, launch

from pipeline.errors import UserError
from tests.test_backbones import built, file_of
from training.run import load_run


@pytest.mark.launched
def test_a_run_goes_on_without_the_file_that_it_began_with(tiny_run: Path, tmp_path: Path) -> None:
    weights, run = tmp_path / "weights.pth", tmp_path / "run"
    file_of(built(BACKBONE["name"], width=BACKBONE["width"]).net, weights)
    backbone = "hybrid.model.backbone"
    settings = [f"{backbone}.weights={weights}", f"{backbone}.freeze_stem=true"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    launch(1, command(tiny_run, run, *arguments, "--set", "steps=2"), tmp_path / "first")
    began = json.loads((run / "weights.json").read_text())
    first = load_run(run).model().search

    weights.unlink()
    on = (*arguments, "--set", "steps=4", "--resume", "--allow-change")
    launch(1, command(tiny_run, run, *on), tmp_path / "second")
    assert began["origin"] == str(weights)
    assert json.loads((run / "weights.json").read_text()) == began
    trained = load_run(run).model().search
    stem = trained.backbone.conv1[0].weight
    assert not stem.requires_grad
    assert torch.equal(stem, first.backbone.conv1[0].weight)
    assert not torch.equal(trained.rpn.head.cls_logits.weight, first.rpn.head.cls_logits.weight)
    with pytest.raises(UserError, match="no file"):
        load_run(run).first_model()
