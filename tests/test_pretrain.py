"""What a user can get wrong in a pre-training run shows before the ranks meet."""

import json
import os
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
from training.changes import Changes
from training.checkpoint import State
from training.model.weights import LoadedWeights
from training.run import RunFolder, load_run
from training.run_config import RunConfig

ROOT = Path(__file__).parent.parent
RUN_FILES = [
    *(ROOT / "launch/configs/pretrain").glob("*.yaml"),
    *(ROOT / "launch/configs/finetune").glob("*.yaml"),
]
DEMO = ROOT / "launch/configs/pretrain/demo.yaml"


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_run_files_are_valid_and_resolve_to_themselves(path: Path, tmp_path: Path) -> None:
    config = load_config(RunConfig, path)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(RunConfig, tmp_path / "config.yaml") == config


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


def test_a_mean_over_rois_and_accumulation_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = ("--set", "hybrid.oim.mean=roi", "--set", "engine.accumulation=2")
    with pytest.raises(UserError, match=r"oim.mean: roi` needs `engine.accumulation: 1`: RoIs are"):
        start(monkeypatch, *settings)


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


STATE = State(step=4, images=9, stream_digest="ab-4", tables_digest="", sample_digest="")


def changes(tmp_path: Path, *settings: str, stream: str = "ab") -> Changes:
    """Against a run of the demo."""
    RunFolder(tmp_path / "run").create(load_config(RunConfig, DEMO), fake_stream("ab"))
    now = load_config(RunConfig, DEMO, settings)
    return RunFolder(tmp_path / "run").changes(now, fake_stream(stream), STATE)


def test_what_does_not_change_training_may_change(tmp_path: Path) -> None:
    free = ("log.every=7", "checkpoint.keep=9", "engine.zero_stage=1", "stream.threads=5", "run=x")
    found = changes(tmp_path, *free)
    assert set(found.free) == {setting.partition("=")[0] for setting in free}
    assert found.free["log.every"] == (1, 7)
    found.require_permission(tmp_path)


def test_another_mixture_may_follow(tmp_path: Path) -> None:
    segment = "stream.segments=[{from_step: 9, scenes: [{shards: s, weight: 1}]}]"
    found = changes(tmp_path, segment)
    assert found.free["stream.segments.0.from_step"] == (None, 9)
    assert not found.binding


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("engine.clip=1", r"engine\.clip 5\.0 -> 1\.0"),
        ("seed=1", r"seed 0 -> 1"),
        ("steps=300", r"steps 200 -> 300"),  # its learning rate decays over all of them
        ("hybrid.weights.oim=2", r"hybrid\.weights\.oim 0\.5 -> 2\.0"),
    ],
)
def test_what_changes_training_wants_permission(tmp_path: Path, setting: str, said: str) -> None:
    found = changes(tmp_path, setting)
    with pytest.raises(UserError, match=rf"from step 4 as another one: {said}\. .*--allow-change"):
        found.require_permission(tmp_path / "run")


def test_another_stream_wants_permission_and_names_its_settings(tmp_path: Path) -> None:
    found = changes(tmp_path, "stream.scene_batch=4", "stream.threads=3", stream="cd")
    assert found.binding == {
        "stream.scene_batch": (2, 4),
        "digest of the stream so far": ("ab-4", "cd-4"),
    }
    assert found.free == {"stream.threads": (1, 3)}


def test_changes_are_recorded_beside_those_before(tmp_path: Path) -> None:
    for clip in (1, 2):
        changes(tmp_path, f"engine.clip={clip}").record(tmp_path / "run")
    recorded = (tmp_path / "run/changes.jsonl").read_text().splitlines()
    assert [json.loads(line)["changes"] for line in recorded] == [
        {"engine.clip": [5.0, 1.0]},
        {"engine.clip": [5.0, 2.0]},
    ]


def test_one_process_writes_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    held = folder.claim()
    with pytest.raises(UserError, match=rf"still being written, by process {os.getpid()} on"):
        folder.claim()
    held.close()
    folder.claim().close()


def state_of(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


def test_a_run_is_read_back_without_its_shards(tmp_path: Path) -> None:
    config, stream = load_config(RunConfig, DEMO), fake_stream("ab")
    folder = RunFolder(tmp_path / "run")
    folder.create(config, stream)
    folder.record_weights(LoadedWeights("https://weights", "ab", 100, ("fc.bias",)))
    folder.write_status(3, 200, eta_s=12.34, stopping=False, checkpoint=None)
    run = load_run(tmp_path / "run")
    assert run.config == config
    assert run.domains == stream.domains
    assert run.identities == stream.identities
    assert state_of(tmp_path / "run") == "running"
    folder.write_status(3, 2, eta_s=0.0, stopping=False, checkpoint=None)  # `steps` was lowered
    assert state_of(tmp_path / "run") == "finished"
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["packages"]["deepspeed"]
    weights = json.loads((tmp_path / "run/weights.json").read_text())
    assert (weights["origin"], weights["unused"]) == ("https://weights", ["fc.bias"])
    with pytest.raises(UserError, match="no checkpoint yet"):
        run.checkpoint()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder: config.yaml is missing"):
        load_run(tmp_path)
