"""Commands that need one another, a few side by side, gone on with wherever they were."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

POLL_S = 0.5
TAIL = 15
"""Lines of a failed job's log that are shown."""


@dataclass(frozen=True)
class Job:
    name: str
    command: tuple[str, ...]
    folder: Path
    """Where it runs; takes its log."""
    is_done: Callable[[], bool]
    needs: tuple[str, ...] = ()
    finish: Callable[[], None] | None = None
    """What remains when the command has ended well."""

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.name.rsplit('/', 1)[-1]}.log"


def needed(jobs: Sequence[Job]) -> list[Job]:
    """Those that are not done, and are wanted for themselves (nothing needs them) or by one that is."""
    by_name = {job.name: job for job in jobs}
    wanted = {job.name for job in jobs} - {name for job in jobs for name in job.needs}
    found: dict[str, Job] = {}

    def visit(name: str) -> None:
        job = by_name[name]
        if name not in found and not job.is_done():
            for other in job.needs:
                visit(other)
            found[name] = job

    for job in jobs:
        if job.name in wanted:
            visit(job.name)
    return list(found.values())


def run_jobs(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]]) -> None:
    """Runs `needed(jobs)`, in order where they are ready, one for each slot (its environment) at a time.

    A job that fails takes those that need it with it; the others go on. Raises UserError about failures.
    """
    waiting, failed = needed(jobs), dict[str, Job]()
    free = list(slots)
    running: list[_Running] = []
    with _ended_with_us(running):
        while waiting or running:
            _collect(running, free, failed)
            waiting = _without_hopeless(waiting, failed)
            busy = {one.job.name for one in running} | {job.name for job in waiting}
            ready = [job for job in waiting if not busy.intersection(job.needs)]
            for job in ready[: len(free)]:
                waiting.remove(job)
                running.append(_Running.start(job, free.pop()))
            time.sleep(POLL_S)
    if failed:
        shown = "\n\n".join(_end_of_log(job) for job in failed.values())
        raise UserError(f"{len(failed)} jobs failed; run the command again to go on.\n{shown}")


@dataclass
class _Running:
    job: Job
    slot: Mapping[str, str]
    process: "subprocess.Popen[bytes]"

    @classmethod
    def start(cls, job: Job, slot: Mapping[str, str]) -> "_Running":
        print(f"{time.strftime('%H:%M:%S')}  {job.name}", flush=True)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            log.write(f"$ {shlex.join(job.command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                job.command,
                cwd=job.folder,
                env={**os.environ, **slot},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=False,  # they inherit the lock of `launch/experiment.py`
            )
        return cls(job, slot, process)


def _collect(
    running: list[_Running], free: list[Mapping[str, str]], failed: dict[str, Job]
) -> None:
    """Takes the ended ones out of `running`."""
    for one in [one for one in running if one.process.poll() is not None]:
        running.remove(one)
        free.append(one.slot)
        if not _ended_well(one):
            failed[one.job.name] = one.job
            print(f"{time.strftime('%H:%M:%S')}  {one.job.name}: FAILED, {one.job.log}", flush=True)


def _ended_well(one: _Running) -> bool:
    if one.process.returncode:
        return False
    try:
        if one.job.finish is not None:
            one.job.finish()
        return one.job.is_done()
    except (UserError, OSError, KeyError) as error:  # its fault alone: others go on
        with one.job.log.open("a") as log:
            log.write(f"{type(error).__name__}: {error}\n")
        return False


def _without_hopeless(waiting: list[Job], failed: Mapping[str, Job]) -> list[Job]:
    hopeless = set(failed)
    for job in waiting:  # in the order of their needs
        if hopeless.intersection(job.needs):
            hopeless.add(job.name)
    return [job for job in waiting if job.name not in hopeless]


@contextmanager
def _ended_with_us(running: list[_Running]) -> Iterator[None]:
    """SIGTERM is an interruption; whatever is left then gets one too, and its time for a checkpoint."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()
        signal.signal(signal.SIGTERM, before)


def _end_of_log(job: Job) -> str:
    lines = job.log.read_text(errors="replace").splitlines()[-TAIL:]
    return "\n".join([f"{job.name}, {job.log}:", *(f"  {line}" for line in lines)])
