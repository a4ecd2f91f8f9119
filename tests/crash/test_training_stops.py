"""Requests to stop, as launchers, Slurm and Kubernetes send them, to real launches; and a full disk."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from crash.runs import kill_sessions, session_of
from ranks import command, lines, newest, ranks

from training.checkpoint import CheckpointConfig, Checkpoints
from training.engine import free_port
from training.signals import EXIT_STOPPED

ROOT = Path(__file__).parents[2]
WITHIN_S = 30.0
"""What DeepSpeed's launcher and Kubernetes give a process between SIGTERM and SIGKILL."""
ENDLESS = ("--set", "steps=100000", "--set", "optimiser.decay=none")


@contextmanager
def launched(tiny_run: Path, run: Path, *settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`deepspeed` with two ranks, once they have made three steps; nothing of it is left afterwards."""
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    options = ["-q", "--num_gpus", "2", "--master_port", free_port()]
    script = [str(ROOT / "launch/pretrain.py"), *command(tiny_run, run, *settings).arguments]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with open(run.parent / "log", "ab") as log:
        process = subprocess.Popen(
            [launcher, *options, *script],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: (run / "metrics.jsonl").exists() and len(lines(run)) >= 3)
        yield process
    finally:
        kill_sessions({process.pid})
        process.wait()


def wait_until(there: Callable[[], bool], limit_s: float = 180.0) -> None:
    deadline = time.monotonic() + limit_s
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes(leader: int, script: str) -> list[int]:
    """Of the launch: those whose command has `script` first after the interpreter and its options."""
    found = []
    for pid in session_of(leader):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if any(word.endswith(script) for word in words[1:4]):
            found.append(pid)
    return found


def to_launcher(leader: int) -> list[int]:
    """DeepSpeed's inner one, which the ranks are children of."""
    return processes(leader, "deepspeed.launcher.launch")


def to_a_rank(leader: int) -> list[int]:
    return processes(leader, "pretrain.py")[-1:]


def to_all(leader: int) -> list[int]:
    """As Slurm does it, stream workers included."""
    return [pid for pid in session_of(leader) if pid != leader]


@pytest.mark.parametrize(
    ("number", "targets", "settings"),
    [
        (signal.SIGTERM, to_launcher, ()),
        (signal.SIGTERM, to_a_rank, ("--set", "checkpoint.background=true")),
        (signal.SIGUSR1, to_a_rank, ()),
        (signal.SIGTERM, to_all, ("--set", "stream.workers=processes")),
    ],
)
def test_a_request_to_stop_ends_in_one_complete_checkpoint(
    tiny_run: Path,
    tmp_path: Path,
    number: signal.Signals,
    targets: Callable[[int], list[int]],
    settings: tuple[str, ...],
) -> None:
    run = tmp_path / "run"
    often = ("--set", "checkpoint.every=100000")
    with launched(tiny_run, run, *ENDLESS, *often, *settings) as process:
        chosen = targets(process.pid)
        assert chosen
        ranks_ = processes(process.pid, "pretrain.py")
        began = time.monotonic()
        for pid in chosen:
            os.kill(pid, number)
        wait_until(lambda: not set(ranks_) & set(session_of(process.pid)))
        assert time.monotonic() - began < WITHIN_S
        code = process.wait(60)
    said = (run.parent / "log").read_text()
    if targets is to_a_rank:  # a launcher that is signalled itself ends with a code of its own
        assert code == EXIT_STOPPED, said
    assert "Traceback" not in said, said
    published = [p.name for p in (run / "checkpoints").iterdir()]
    assert len(published) == 2, published  # and `latest`
    found = Checkpoints(run / "checkpoints", CheckpointConfig()).newest()
    assert found is not None
    assert found.state.step == lines(run)[-1]["step"]
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"


def test_a_killed_launchers_ranks_keep_others_out(tiny_run: Path, tmp_path: Path) -> None:
    """SIGKILL of `deepspeed` leaves its ranks at work: who resumes is told so, and how to stop them."""
    run = tmp_path / "run"
    with launched(tiny_run, run, *ENDLESS) as process:
        process.kill()
        process.wait()
        wait_until(lambda: (run / "checkpoints/latest").exists())
        with ranks(
            1, command(tiny_run, run, "--resume", *ENDLESS), tmp_path / "refused"
        ) as refused:
            assert refused.wait() == [2]
            assert "is still being written, by process" in refused.output()
        (pid,) = {int(w) for w in (run / "writer.lock").read_text().split() if w.isdigit()}
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not processes(process.pid, "pretrain.py"))
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("background", ["false", "true"])
def test_a_full_disk_costs_no_checkpoint(
    tiny_run: Path, small_disk: Path, tmp_path: Path, background: str
) -> None:
    """Both ranks stop with a paragraph; with room again the run goes on to its end."""
    run, setting = small_disk / "run", ("--set", f"checkpoint.background={background}")
    with ranks(2, command(tiny_run, run, *setting), tmp_path / "full") as full:
        assert full.wait() == [2, 2], full.output()
        assert "cannot write the checkpoint" in full.output()
        assert "No space left on device" in full.output()
        assert "Traceback" not in full.output()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"latest", "step-00000002"}
    subprocess.run(["mount", "-o", "remount,size=1g", str(small_disk)], check=True)
    with ranks(2, command(tiny_run, run, "--resume", *setting), tmp_path / "room") as room:
        assert room.wait() == [0, 0], room.output()
    assert json.loads(newest(run)["state.json"])["step"] == 6
