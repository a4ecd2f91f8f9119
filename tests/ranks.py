"""Pre-training as processes of its own, forked from a server that has imported everything: starting takes
a second instead of twenty, and each rank can be killed by itself."""

import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml
from shardset import simple_set

from training.engine import free_port

CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["launch.pretrain", "deepspeed", "ranks"]
LIMIT_S = 300
GRACE_S = 5.0
STEPS = 6
"""Of the tiny run; it saves after every second."""
BACKBONE = {
    "name": "shufflenet_v2",
    "width": 0.5,
    "weights": "random",
    "norm": "cross_rank",
    "freeze_stem": False,
}
"""A sixth of ResNet-18's time a step, and a fifth of its checkpoint."""
Main = Callable[[], None]


@dataclass
class Ranks:
    """The processes of one launch."""

    folder: Path
    """Takes their output and process ids."""
    processes: list[BaseProcess] = field(default_factory=list)

    def wait(self, limit_s: float = LIMIT_S) -> list[int]:
        """Their exit codes. As a launcher does, it ends those that are left once one has failed."""
        deadline = time.monotonic() + limit_s
        while alive := [process for process in self.processes if process.is_alive()]:
            assert time.monotonic() < deadline, f"still there: {self.output()}"
            connection.wait([process.sentinel for process in alive], timeout=1.0)
            if any(process.exitcode for process in self.processes):
                self.end()
        return [process.exitcode or 0 for process in self.processes]

    def end(self) -> None:
        for process in self.processes:
            process.join(GRACE_S)
            process.kill()
            process.join()

    def output(self, rank: int | None = None) -> str:
        """The end of what they printed, or one of them did."""
        logs = self.folder.glob("log-*" if rank is None else f"log-{rank}")
        return "\n".join(path.read_text()[-20_000:] for path in sorted(logs))


@contextmanager
def ranks(
    world_size: int, main: Main, folder: Path, moment: Mapping[str, Any] | None = None
) -> Iterator[Ranks]:
    """Ranks that call `main`, which must be importable. `moment`: what the hook of `tests/crash` gets."""
    with_one_thread()
    folder.mkdir(parents=True)
    found = Ranks(folder)
    port = free_port()
    try:
        for rank in range(world_size):
            arguments = (main, rank, world_size, port, folder, moment)
            found.processes.append(CONTEXT.Process(target=run_rank, args=arguments))
            found.processes[-1].start()
            (folder / f"rank {rank}").write_text(str(found.processes[-1].pid))
        yield found
    finally:
        for process in found.processes:
            process.kill()


def with_one_thread() -> None:
    """Starts the server, unless it is there, in the environment that all ranks are to have."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    own = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_rank(
    main: Main,
    rank: int,
    world_size: int,
    port: str,
    folder: Path,
    moment: Mapping[str, Any] | None,
) -> None:
    log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CRASH_RANKS": str(folder)}
    if moment is not None:
        from crash.hook.sitecustomize import install

        install(dict(moment))
    main()


@dataclass(frozen=True)
class Script:
    """`launch/pretrain.py`, or another that trains, with these arguments."""

    arguments: tuple[str, ...]
    name: str = "pretrain"

    def __call__(self) -> None:
        from pipeline.errors import run_command

        sys.argv = [f"{self.name}.py", *self.arguments]
        run_command(importlib.import_module(f"launch.{self.name}").main)


def tiny_run_file(folder: Path) -> Path:
    """Shard sets and the settings of a run of seconds, deterministic to the bit; `run` is to be set."""
    scenes = simple_set(folder / "scenes", "detection", shards=4, per_shard=4)
    canvases = simple_set(folder / "canvases", "reid", shards=4, per_shard=4)
    others = simple_set(
        folder / "others", "reid", shards=4, per_shard=4, dataset="crowd", labelled=False
    )
    quota = {"anchors": 16, "rois": 4}
    detector = {
        "proposal_source": "jitter",
        "proposals": 8,
        "anchor_sizes": [24, 48],
        "anchor_ratios": [2.0],
        "roi_size": [4, 4],
        "scenes": quota,
        "canvases": quota,
    }
    tree = {
        "run": str(folder / "run"),
        "steps": STEPS,
        "stream": {
            "scenes": [{"shards": scenes, "weight": 1}],
            "canvases": [{"shards": canvases, "weight": 1}, {"shards": others, "weight": 1}],
            "scene_batch": 2,
            "canvas_batch": 4,
            "scene_size": [64, 96],
            "canvas_size": [64, 48],
            "views": {"mode": "fast"},
            "threads": 1,
        },
        "hybrid": {
            "model": {"backbone": BACKBONE, "detector": detector},
            "oim": {"queue": 8},
            "alignment": {"ramp": [0, 4]},
        },
        "optimiser": {"kind": "adamw", "lr": 1e-3, "lr_per_images": None, "warmup_steps": 2},
        "engine": {"threads": 1, "deterministic": True, "timeout_s": 60},
        "checkpoint": {"every": 2, "keep": 1},
        "log": {"every": 1, "tensorboard": False},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def command(run_file: Path, run: Path, *arguments: str) -> Script:
    return Script(("--config", str(run_file), "--set", f"run={run}", *arguments))


def newest(run: Path) -> dict[str, bytes]:
    """The files of the checkpoint that `latest` names."""
    name = (run / "checkpoints/latest").read_text().strip()
    return {path.name: path.read_bytes() for path in (run / "checkpoints" / name).iterdir()}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def launch(world_size: int, main: Main, folder: Path, limit_s: float = LIMIT_S) -> Sequence[int]:
    """To its end."""
    with ranks(world_size, main, folder) as launched:
        codes = launched.wait(limit_s)
        assert not any(codes), launched.output()
    return codes
