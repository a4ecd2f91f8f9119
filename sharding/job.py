"""The job: every shard that is not there yet is a task, every failure is named, every sample counted."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from pipeline.errors import UserError
from pipeline.shards import Manifest
from pipeline.stores.store import Location
from sharding.cluster import TASK_BYTES, Cluster, Failure, Task, ray_session
from sharding.output import finish
from sharding.prepare import DECODE_BYTES, PreparedSet, check_outputs, prepare
from sharding.progress import Progress
from sharding.recipe import SetRequest
from sharding.retry import PreparedRetry, prepare_retry
from sharding.writer import ShardJob, ShardResult, TooLarge, write_shard

SHOWN = 5


@dataclass(frozen=True)
class SetOutcome:
    """What became of one set in one run."""

    request: SetRequest
    manifest: Manifest | None
    """None: it is not finished."""
    error: str | None
    seconds: float
    shards_written: int
    shards_kept: int
    """They were there already."""
    read_bytes: int
    written_bytes: int
    notes: tuple[str, ...] = ()


class ShardsFailed(UserError):
    """Some shards could not be written, or have no sample; all others are written."""


def write_sets(
    requests: Sequence[SetRequest], workers: int | None = None, retry: bool = False
) -> list[SetOutcome]:
    """Writes all sets in one Ray session; what cannot be written is an outcome's `error`.

    Raises UserError as `prepare_sets` does, before anything is written.
    """
    prepared = prepare_sets(requests, retry)
    work = any(isinstance(one, PreparedRetry) or one.todo for one in prepared)
    with ray_session(workers) if work else nullcontext(Cluster()) as cluster:
        return [_outcome(one, cluster) for one in prepared]


def prepare_sets(
    requests: Sequence[SetRequest], retry: bool = False
) -> list[PreparedSet | PreparedRetry]:
    """With `retry`, finished sets get another try for what they had to quarantine.

    Raises UserError if two sets would be written to one place, or if one cannot be written.
    """
    check_outputs(requests)
    return [(retry and prepare_retry(request)) or prepare(request) for request in requests]


@dataclass
class Tally:
    """What a run wrote of a set, however far it came."""

    shards: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    def add(self, result: ShardResult) -> None:
        self.shards += 1
        self.read_bytes += result.read_bytes
        self.written_bytes += result.written_bytes


def _outcome(prepared: PreparedSet | PreparedRetry, cluster: Cluster) -> SetOutcome:
    started, tally = time.monotonic(), Tally()
    manifest, error = None, None
    try:
        manifest = write_set(prepared, cluster, tally)
    except (UserError, OSError) as failure:
        error = f"{prepared.name}: {failure}" if isinstance(failure, OSError) else str(failure)
    planned = len(prepared.plan.shards) if isinstance(prepared, PreparedSet) else 0
    todo = len(prepared.todo) if isinstance(prepared, PreparedSet) else 0
    return SetOutcome(
        request=prepared.request,
        manifest=manifest,
        error=error,
        seconds=time.monotonic() - started,
        shards_written=tally.shards,
        shards_kept=planned - todo,
        read_bytes=tally.read_bytes,
        written_bytes=tally.written_bytes,
        notes=prepared.notes,
    )


def write_set(
    prepared: PreparedSet | PreparedRetry, cluster: Cluster, tally: Tally | None = None
) -> Manifest:
    """Writes the shards that are not there yet, then the manifest. Raises ShardsFailed."""
    tally = tally or Tally()
    if isinstance(prepared, PreparedRetry):
        total, done = len(prepared.samples), 0
        finishing: Callable[[], Manifest] = prepared.finish
    else:
        total = prepared.plan.samples
        done = total - prepared.samples_todo
        finishing = _finishing(prepared)
    if total > done:
        with Progress(prepared.name, total, done) as progress:
            failures = _run(prepared.jobs(), cluster, tally, progress)
        if failures:
            raise ShardsFailed(_explain(prepared.name, failures))
    return finishing()


def _finishing(prepared: PreparedSet) -> Callable[[], Manifest]:
    if prepared.kept is not None:
        kept = prepared.kept
        return lambda: kept
    request = prepared.request
    return lambda: finish(Location(request.out), prepared.plan, request.adapter, prepared.listing)


def _run(
    jobs: Iterable[ShardJob], cluster: Cluster, tally: Tally, progress: Progress
) -> dict[str, str]:
    """A task a shard; the names of failed ones with the reason."""
    failures = {}
    for job, result in cluster.run(write_shard, map(Task, jobs), _with_more_memory):
        if isinstance(result, Failure):
            failures[job.shard.name] = result.reason
        elif isinstance(result, ShardResult):
            tally.add(result)
            progress.add(result, len(job.shard.samples))
    return failures


def _with_more_memory(job: ShardJob, result: ShardResult | TooLarge) -> Task[ShardJob] | None:
    """Another try of a shard that holds an image too large for the usual memory."""
    if not isinstance(result, TooLarge):
        return None
    larger = replace(job, conversion=replace(job.conversion, memory=result.needed))
    return Task(larger, memory=TASK_BYTES - DECODE_BYTES + result.needed)


def _explain(name: str, failures: dict[str, str]) -> str:
    named = "; ".join(f"{shard} ({reason})" for shard, reason in sorted(failures.items())[:SHOWN])
    more = f" and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    return (
        f"{len(failures)} shards of {name} could not be written: {named}{more}. The others are finished: "
        "run the same command again and it writes these."
    )
