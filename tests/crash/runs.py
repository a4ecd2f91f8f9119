"""The sharding job as a user starts it, in a process of its own, and what it leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crash.moments import Moment, fell

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "shard_crops=3",
    "shard_bytes=60000",
    "group=2",
    "canvas.size=[384,192]",
    "canvas.variants=2",
)
"""Nine shards in two variants."""
LIMIT_S = 180


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    """Of stdout and stderr."""


@dataclass(frozen=True)
class Job:
    """`python -m sharding write` of one set, to be run any number of times."""

    source: str
    out: str
    folder: Path
    """Takes logs and the temporary files of all its processes."""
    workers: int = 2

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "sharding", "write", "--dataset", "msmt17"]
        command += ["--split", "train_val", "--source", self.source, "--out", self.out]
        command += ["--workers", str(self.workers)]
        return command + [part for setting in SETTINGS for part in ("--set", setting)]

    def run(self, environment: Mapping[str, str] | None = None) -> Ended:
        """To its end. Whatever of it still lives then stays alive: `reap` ends it."""
        with self.started(environment) as process:
            try:
                process.wait(LIMIT_S)
            finally:
                process.kill()
            return Ended(process.wait(), self.log.read_text())

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @contextmanager
    def started(
        self, environment: Mapping[str, str] | None = None, before: Sequence[str] = ()
    ) -> "Iterator[subprocess.Popen[bytes]]":
        """`before` is a command that runs it, in a network namespace for one."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        own = {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        with open(self.log, "wb") as log:
            process = subprocess.Popen(
                [*before, *self.command()],
                cwd=ROOT,
                env={**os.environ, **own, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            with open(self.folder / "sessions", "a") as sessions:
                sessions.write(f"{process.pid}\n")
            yield process

    def reap(self) -> None:
        """SIGKILL for all that is left of all runs, and their folders in /tmp."""
        leaders = {int(line) for line in (self.folder / "sessions").read_text().split()}
        kill_sessions(leaders)
        for leader in leaders:
            for session in Path("/tmp").glob(f"ray-*/session_*_{leader}"):
                shutil.rmtree(session.parent, ignore_errors=True)


def run_into(job: Job, moment: Moment, folder: Path) -> tuple[Ended, str]:
    """A run in which the moment comes: how it ended, and where the kill fell. `folder` is made."""
    folder.mkdir()
    ended = job.run(moment.environment(folder))
    assert fell(folder).exists(), f"nothing was killed: {moment}\n{ended.output}"
    return ended, fell(folder).read_text().strip()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too, by its relative name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def kill_sessions(leaders: set[int]) -> None:
    """SIGKILL for all processes of the sessions with these leaders."""
    for _ in range(3):  # who is being started right now shows up in the next round
        for pid in _of_sessions(leaders):
            _kill(pid)
        time.sleep(0.05)


def session_of(pid: int) -> list[int]:
    """The processes that `pid`, a session's leader, has started."""
    return list(_of_sessions({pid}))


def _of_sessions(leaders: set[int]) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) in leaders:
                yield int(entry.name)
        except ProcessLookupError:
            continue


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
