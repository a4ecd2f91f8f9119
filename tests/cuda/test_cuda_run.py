"""A launched run on a GPU over NCCL, cut by SIGTERM: it goes on with the same samples and losses."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import command, lines, tiny_run_file

from training.signals import EXIT_STOPPED

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0
BEFORE, AFTER = 3, 5
"""Steps at least until the signal, and from there on."""
NEAR = 5e-2
"""Relative: sums on a GPU change their order, by which losses were 1 % apart after 9 steps on an H200."""
SETTINGS = (
    "engine.deterministic=false",
    "optimiser.decay=none",
    "checkpoint.every=100000",
)


@pytest.fixture
def run_file(cuda: torch.device, tmp_path: Path) -> Path:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.fail("this test launches training, which needs deepspeed", pytrace=False)
    return tiny_run_file(tmp_path)


def start(run_file: Path, run: Path, steps: int, *arguments: str) -> "subprocess.Popen[bytes]":
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    settings += ["--set", f"steps={steps}", *arguments]
    script = [str(ROOT / "launch/pretrain.py"), *command(run_file, run, *settings).arguments]
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.Popen([sys.executable, *script], env=environment)


def test_goes_on_after_a_signal(run_file: Path, tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = start(run_file, cut, 100_000)
    deadline = time.monotonic() + LIMIT_S
    while not (cut / "metrics.jsonl").exists() or len(lines(cut)) < BEFORE:
        assert process.poll() is None, "it ended before its first steps"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == EXIT_STOPPED
    stopped = len(lines(cut))
    assert start(run_file, cut, stopped + AFTER, "--resume").wait(LIMIT_S) == 0
    assert start(run_file, whole, stopped + AFTER).wait(LIMIT_S) == 0
    ours, theirs = lines(cut), lines(whole)
    assert [line["step"] for line in ours] == list(range(1, stopped + AFTER + 1))
    assert ours[-1]["sample_digest"] == theirs[-1]["sample_digest"]
    for found, meant in zip(ours, theirs, strict=True):
        assert found["total"] == pytest.approx(meant["total"], rel=NEAR)
