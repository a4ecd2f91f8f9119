"""What a user can get wrong in a pre-training run shows before the ranks meet."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from launch import pretrain
from pipeline.config import dump_config, load_config
from pipeline.errors import UserError, run_command
from pipeline.identities import Identities
from pipeline.stream import Stream
from training.checkpoint import CheckpointConfig, State
from training.run import PretrainConfig, RunFolder, load_run

ROOT = Path(__file__).parent.parent
RUN_FILES = sorted((ROOT / "launch/configs/pretrain").glob("*.yaml"))
DEMO = ROOT / "launch/configs/pretrain/demo.yaml"


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_run_files_are_valid_and_resolve_to_themselves(path: Path, tmp_path: Path) -> None:
    config = load_config(PretrainConfig, path)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(PretrainConfig, tmp_path / "config.yaml") == config


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str, world_size: int = 1) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config", str(DEMO), *arguments])
    monkeypatch.setattr(pretrain, "init_distributed", lambda config: pytest.fail("ranks met"))
    pretrain.main()


def test_unknown_key_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"unknown key `optimiser.weight_deacy`, did you mean `weight_decay`"
    ):
        start(monkeypatch, "--set", "optimiser.weight_deacy=1")


def test_world_size_must_divide_the_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    batch = ("--set", "stream.scene_batch=4", "--set", "stream.canvas_batch=0")
    with pytest.raises(UserError, match=r"is 3, which does not divide scene_batch 4"):
        start(monkeypatch, "--set", f"run={tmp_path / 'run'}", *batch, world_size=3)
    assert not (tmp_path / "run").exists()


def test_missing_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no shard set at runs/demo/shards"):
        start(monkeypatch)
    assert not list(tmp_path.iterdir())


def test_a_used_folder_wants_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 3")
    with pytest.raises(UserError, match=r"not empty. Continue that run with --resume"):
        start(monkeypatch, "--set", f"run={tmp_path}")


@pytest.mark.parametrize("speaks", [True, False])
def test_one_rank_explains_and_the_others_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speaks: bool
) -> None:
    def fail() -> None:
        raise UserError("what to do.")

    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(SystemExit) as exit_:
        run_command(fail, speaks=lambda: speaks)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: what to do.\n"
    assert bool(waits) is not speaks


def fake_stream(digest: str) -> Stream:
    return cast(
        Stream,
        SimpleNamespace(
            digest=digest,
            history_digest=lambda step: f"{digest}-{step}",
            manifests={},
            domains={"detection": ("crowdhuman", "ecp"), "reid": ()},
            definition={"seed": 0},
            identities=Identities(pairs=(("msmt17", "train:0001"),)),
        ),
    )


def test_another_stream_is_not_resumed(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), CheckpointConfig()
    assert folder.find_start(config) is None
    state = State(step=4, images=9, stream_digest="ab-4", tables_digest="", sample_digest="")
    folder.checkpoints(config).write(state, {}, {})
    found = folder.find_start(config)
    assert found is not None
    assert found.state == state
    folder.require_same_history(found, fake_stream("ab"))
    with pytest.raises(
        UserError, match=r"step-00000004 was trained on another stream.*stream.json.*from step 4 on"
    ):
        folder.require_same_history(found, fake_stream("cd"))


def test_a_run_is_read_back_without_its_shards(tmp_path: Path) -> None:
    config, stream = load_config(PretrainConfig, DEMO), fake_stream("ab")
    folder = RunFolder(tmp_path / "run")
    folder.create(config, stream)
    folder.write_status(3, 200, eta_s=12.34, stopping=False, checkpoint=None)
    run = load_run(tmp_path / "run")
    assert run.config == config
    assert run.domains == stream.domains
    assert run.identities == stream.identities
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "running"
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["packages"]["deepspeed"]
    with pytest.raises(UserError, match="no checkpoint yet"):
        run.checkpoint()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder: config.yaml is missing"):
        load_run(tmp_path)
