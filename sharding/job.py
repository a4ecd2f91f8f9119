"""The plan on Ray: one task a shard, what is done already skipped, every failure named."""

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, TextIO

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.shards import Manifest
from pipeline.store import Location
from sharding.output import finish
from sharding.prepare import PreparedSet, prepare_sets
from sharding.recipe import SetRequest
from sharding.writer import ShardJob, ShardResult, write_shard

IN_FLIGHT_PER_CPU = 2
"""Enough that no worker waits for the driver, few enough that plans of shards do not pile up."""
TASK_RETRIES = 3
OBJECT_STORE_BYTES = 256 << 20
"""Holds plans of shards in flight only; fits where Ray's own default, a third of the memory, does not."""
LOG_INTERVAL_S = 10.0
LOG_FORMAT = "{desc}: {n_fmt} of {total_fmt} images, {rate_fmt}, {remaining} left{postfix}"
CONNECT_TIMEOUT_S = 10.0
SHOWN = 5


class ShardsFailed(UserError):
    """Some shards could not be written, or have no sample; all others are written."""


def write_sets(requests: Sequence[SetRequest], workers: int | None = None) -> list[Manifest]:
    """Writes all sets in one Ray session.

    Raises UserError before anything is written, or ShardsFailed once all that can be written is.
    """
    prepared = prepare_sets(requests)
    manifests, failures = [], []
    work = any(one.todo for one in prepared)
    with ray_session(workers) if work else nullcontext(0) as in_flight:
        for one in prepared:
            try:
                manifests.append(write_set(one, in_flight))
            except UserError as error:
                failures.append(str(error))
    if failures:
        raise ShardsFailed(" ".join(failures))
    return manifests


def write_set(prepared: PreparedSet, in_flight: int) -> Manifest:
    """Writes the shards that are not there yet, then the manifest."""
    failures = dict(_run(prepared, in_flight)) if prepared.todo else {}
    if failures:
        raise ShardsFailed(_explain(prepared, failures))
    request = prepared.request
    return finish(Location(request.out), prepared.plan, request.adapter, prepared.listing)


@contextmanager
def ray_session(workers: int | None = None) -> Iterator[int]:
    """Yields how many tasks may be in flight: on the cluster at RAY_ADDRESS, else on a Ray of its own."""
    if ray.is_initialized():
        yield workers or _slots()
    elif "RAY_ADDRESS" in os.environ:  # set by the user, or by Ray inside `ray job submit`
        _connect(os.environ["RAY_ADDRESS"])
        try:
            yield workers or _slots()
        finally:
            ray.shutdown()
    else:
        # Not below the user's temporary folder: Ray's socket paths must stay under 107 bytes.
        temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        try:
            _start(workers or len(os.sched_getaffinity(0)), temporary)
            yield _slots()
        finally:
            ray.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)


def _start(workers: int, temporary: str) -> None:
    # A token of its own: Ray would write one into the home folder, which a container may not have.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        num_cpus=workers,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=temporary,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _slots() -> int:
    return IN_FLIGHT_PER_CPU * int(ray.cluster_resources().get("CPU", 1))


def _connect(address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster lets us in at RAY_ADDRESS={address} ({error}). Start one, set "
            "RAY_AUTH_MODE=token if it asks for its token, or unset RAY_ADDRESS to run on this machine alone."
        ) from None


def _knock(address: str) -> None:
    """Raises OSError at once if nothing listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _run(prepared: PreparedSet, in_flight: int) -> Iterator[tuple[str, str]]:
    """Runs a task for each shard to do; yields the names of failed ones with the reason."""
    task = ray.remote(write_shard).options(
        num_cpus=1, max_retries=TASK_RETRIES, retry_exceptions=[OSError]
    )
    pending: dict[ray.ObjectRef, str] = {}
    quarantined = 0
    with _progress(prepared) as bar:
        for job in chain(_jobs(prepared), [None]):
            if job is not None:
                pending[task.remote(job)] = job.shard.name
            while pending and (job is None or len(pending) >= in_flight):
                (reference,), _ = ray.wait(list(pending), num_returns=1)
                name = pending.pop(reference)
                try:
                    result: ShardResult = ray.get(reference)
                except RayError as error:
                    yield name, _reason(error)
                    continue
                quarantined += result.quarantined
                bar.set_postfix(quarantined=quarantined, refresh=False)
                bar.update(result.ok + result.quarantined)


def _jobs(prepared: PreparedSet) -> Iterator[ShardJob]:
    request, plan = prepared.request, prepared.plan
    description = plan.description()
    for shard in prepared.todo:
        yield ShardJob(
            adapter=request.adapter,
            source=request.source,
            split=request.split,
            shard=shard,
            config=request.config,
            variants=plan.variants,
            out=request.out,
            plan_hash=plan.hash,
            description=description,
        )


def _reason(error: RayError) -> str:
    """The cause in one line; an error that no source or store can cause shows where it came from."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, OSError):
        print(error, file=sys.stderr)
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:300]


def _explain(prepared: PreparedSet, failures: dict[str, str]) -> str:
    named = "; ".join(f"{name} ({reason})" for name, reason in sorted(failures.items())[:SHOWN])
    more = f" and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    return (
        f"{len(failures)} of {len(prepared.plan.shards)} shards of {prepared.name} could not be written: "
        f"{named}{more}. The others are finished: run the same command again and it writes these."
    )


def _progress(prepared: PreparedSet) -> "tqdm[Any]":
    terminal = sys.stderr.isatty()
    total = prepared.plan.samples
    bar: tqdm[Any] = tqdm(
        total=total,
        initial=total - sum(len(shard.samples) for shard in prepared.todo),
        desc=prepared.name,
        unit="image",
        file=sys.stderr if terminal else _LogLines(sys.stderr),
        mininterval=0.2 if terminal else LOG_INTERVAL_S,
        bar_format=None if terminal else LOG_FORMAT,
    )
    return bar


class _LogLines:
    """A stream on which each state of a progress bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()
