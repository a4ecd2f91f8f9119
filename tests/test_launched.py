"""The whole path with real processes: releases -> shards on Ray -> two DeepSpeed ranks -> a checkpoint ->
one rank that goes on from it and is told to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.config import load_config
from pipeline.digest import SampleDigest
from pipeline.stream import Stream
from training.checkpoint import Checkpoint, Checkpoints
from training.engine import free_port
from training.run import Run, load_run
from training.run_config import RunConfig
from training.signals import EXIT_STOPPED

pytestmark = pytest.mark.launched

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PRETRAIN = str(ROOT / "launch/pretrain.py")
SPLITS = {
    "crowdhuman": "train",
    "ecp": "day_train",
    "msmt17": "train_val",
    "cuhk03": "labelled_train",
    "luperson": "train",
}
STEPS = 4
TINY = {
    "steps": STEPS,
    "stream": {
        "scene_batch": 4,
        "canvas_batch": 8,
        "scene_size": [96, 160],
        "canvas_size": [64, 48],
    },
    "hybrid": {
        # proposals around the ground truth: the RPN's ranking flips on the rounding that ranks change
        "model": {
            "detector": {"proposal_source": "jitter", "proposals": 20, "anchor_sizes": [24, 48]}
        },
        "alignment": {"ramp": [0, 4]},
    },
    "optimiser": {"warmup_steps": 2, "decay": "none"},
    "checkpoint": {"every": 2, "keep": 5},
    "log": {"every": 1, "console_every": 2},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: merged(base[key], value) for key, value in changes.items() if isinstance(value, dict)
    }
    return {**base, **changes, **both}


def environment() -> dict[str, str]:
    """No compiler on the path, so DeepSpeed cannot build operators."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**kept, "PATH": str(BIN), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def execute(*command: str) -> str:
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def write_shards(miniature: Path, out: Path) -> None:
    sets = [item for name in SPLITS for item in ("--set", f"sets.{name}.source={miniature / name}")]
    recipe = str(ROOT / "launch/configs/sharding/demo.yaml")
    execute(
        sys.executable, "-m", "sharding", "write", "--config", recipe, "--set", f"out={out}", *sets
    )


def write_run_file(shards: Path, folder: Path) -> Path:
    """The demo's own, made tiny."""
    tree = merged(yaml.safe_load((ROOT / "launch/configs/pretrain/demo.yaml").read_text()), TINY)
    tree["run"] = str(folder / "run")
    for kind in ("scenes", "canvases"):
        for entry in tree["stream"][kind]:
            entry["shards"] = str(shards / entry["shards"].removeprefix("runs/demo/shards/"))
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@dataclass(frozen=True)
class Launched:
    run_file: Path
    console: str
    lines: list[dict[str, Any]]

    @property
    def run(self) -> Run:
        return load_run(load_config(RunConfig, self.run_file).run)

    def checkpoints(self) -> Checkpoints:
        return self.run.folder.checkpoints(self.run.config.checkpoint)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def launched(miniature: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Four steps on two ranks; the tests below look at what is left of them, in their order."""
    folder = tmp_path_factory.mktemp("launched")
    write_shards(miniature[0], folder / "shards")
    run_file = write_run_file(folder / "shards", folder)
    port = free_port()
    launcher = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port]
    console = execute(*launcher, PRETRAIN, "--config", str(run_file))
    return Launched(run_file, console, read_lines(folder / "run"))


def test_every_step_is_logged(launched: Launched) -> None:
    assert [line["step"] for line in launched.lines] == [1, 2, 3, 4]
    assert [line["images"] for line in launched.lines] == [12, 24, 36, 48]
    names = set(launched.lines[0]["losses"])
    parts = {
        "oim",
        "similarity",
        "rpn_class",
        "roi_box",
        "domain_detection_image",
        "domain_reid_instance",
    }
    assert names >= parts
    for line in launched.lines:
        assert set(line["losses"]) == set(line["weighted"]) == names
        assert line["total"] == pytest.approx(sum(line["weighted"].values()))
        assert line["grad_norm"] > 0
    assert "step 2/4  loss" in launched.console
    assert "ETA" in launched.console


def test_the_samples_seen_are_those_of_the_order(launched: Launched) -> None:
    """Two ranks saw what one process alone streams."""
    config = launched.run.config.stream
    digest = SampleDigest()
    with Stream.open(config).batches(0, STEPS) as batches:
        for batch in batches:
            digest.add(batch)
    digest.absorb(digest.take())
    assert launched.lines[-1]["sample_digest"] == digest.hex()


def test_checkpoints_are_whole_and_load(launched: Launched) -> None:
    folder = launched.checkpoints().folder
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["latest", "step-00000002", "step-00000004"]
    assert [Checkpoint.open(folder / name).state.step for name in names[1:]] == [2, 4]
    state = launched.run.checkpoint().state
    assert state.sample_digest == launched.lines[-1]["sample_digest"]
    model = launched.run.model()
    assert model.tables_digest() == state.tables_digest
    status = json.loads((launched.run.folder.path / "status.json").read_text())
    assert (status["state"], status["last_checkpoint"]) == ("finished", "step-00000004")


def test_training_moved_all_weights(launched: Launched) -> None:
    before = dict(launched.run.first_model().named_parameters())
    after = dict(launched.run.model().named_parameters())
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still


def test_one_rank_goes_on_where_two_were_and_stops_on_request(launched: Launched) -> None:
    """From step 2: its steps 3 and 4 are those of the two ranks; then SIGTERM."""
    folder = launched.run.folder.path
    newest = launched.checkpoints().folder / "step-00000004"
    (newest / "model.safetensors").write_bytes(b"cut short")
    command = [sys.executable, PRETRAIN, "--config", str(launched.run_file), "--resume"]
    process = subprocess.Popen([*command, "--set", "steps=1000"], env=environment())
    try:
        wait_for_step(process, folder, STEPS + 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == EXIT_STOPPED
    finally:
        process.kill()
    lines = read_lines(folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    for one, two in zip(lines[2:STEPS], launched.lines[2:]):
        assert one["sample_digest"] == two["sample_digest"]
        assert one["losses"] == pytest.approx(two["losses"], rel=1e-3, abs=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-2)
    state = launched.run.checkpoint().state
    assert (state.step, state.sample_digest) == (lines[-1]["step"], lines[-1]["sample_digest"])
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    """A resumed run first drops the lines after its checkpoint, so their number falls before it grows."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, "the resumed run ended by itself"
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        if len(lines) >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"no step {step} in time")
