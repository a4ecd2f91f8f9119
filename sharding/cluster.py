"""Ray, and nothing else of this project knows it: a session, and tasks that outlive workers and nodes.

A task may run twice, even at the same time (its node was cut off and goes on), so it must do no harm then.
"""

import fcntl
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A node that is cut off without a word: by default its tasks are missed after seven minutes.
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""For this process and a Ray of its own; Ray reads them when it is imported. The nodes of another cluster
want the last five in their own environment."""
for _name, _value in RAY_SETTINGS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.exceptions import LocalRayletDiedError, RayError, RayTaskError  # noqa: E402

from pipeline.errors import UserError  # noqa: E402
from pipeline.stores.store import FINAL_ERRORS  # noqa: E402

IN_FLIGHT_PER_CPU = 2
"""Enough that no worker waits for the driver and that a cluster which can grow sees a reason to."""
TASK_RETRIES = 5
"""Of a task whose worker or node died."""
ERROR_RETRIES = 2
"""Of a task that an OSError ended, after other tries of the read alone: another node may fare better."""
TASK_BYTES = 600 << 20
"""Memory that a task reserves unless it says that it needs more."""
OBJECT_STORE_BYTES = 256 << 20
"""Holds arguments in flight only; fits where Ray's own default, a third of the memory, does not."""
POLL_S = 5.0
"""How often a cluster is asked anew how large it is."""
CONNECT_TIMEOUT_S = 10.0

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class Task(Generic[A]):
    argument: A
    memory: int = 0
    """Bytes to reserve; 0 for the usual."""
    failures: int = 0
    """Tries that ended in an OSError so far: Ray's own retries would print each one's traceback."""


@dataclass(frozen=True)
class Failure:
    """Why a task did not end, in one line."""

    reason: str
    passing: bool
    """A source, store or disk failed in a way that may be better next time, or on another node."""


class RayDied(UserError):
    """Ray itself is gone, and with it all tasks."""


class Cluster:
    """Runs tasks, a bounded number at a time: `most`, or what fits a cluster that may grow."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most

    def run(
        self,
        function: Callable[[A], R],
        tasks: Iterable[Task[A]],
        again: Callable[[A, R], Task[A] | None] = lambda argument, result: None,
    ) -> Iterator[tuple[A, R | Failure]]:
        """Each argument with its result, as they come. `again` may answer a result with another try."""
        remote = ray.remote(function)
        pending: dict[ray.ObjectRef, Task[A]] = {}
        for task in chain(tasks, [None]):
            if task is not None:
                pending[self._start(remote, task)] = task
            while pending and (task is None or len(pending) >= self._slots()):
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S)
                for reference in ready:
                    ended = pending.pop(reference)
                    result = _result(reference)
                    repeat = _repeat(ended, result, again)
                    if repeat is None:
                        yield ended.argument, result
                    else:
                        pending[self._start(remote, repeat)] = repeat

    def map(self, function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[R]:
        """Results as they come. Raises OSError if a task does not end."""
        for _, result in self.run(function, map(Task, arguments)):
            if isinstance(result, Failure):
                raise OSError(result.reason)
            yield result

    def _start(self, remote: Any, task: Task[A]) -> ray.ObjectRef:
        options = remote.options(
            num_cpus=1,
            memory=min(task.memory, _largest_node()) or _usual_bytes(),
            max_retries=TASK_RETRIES,
            scheduling_strategy="SPREAD",
        )
        return options.remote(task.argument)

    def _slots(self) -> int:
        return self._most or IN_FLIGHT_PER_CPU * cpus()


def cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _largest_node() -> int:
    """No task can reserve more than a node has."""
    return max((int(node.get("memory", 0)) for node in _nodes()), default=0)


def _usual_bytes() -> int:
    """Less on nodes that have little for each of their cores: all cores are to work."""
    shares = (node.get("memory", 0) // max(1, node.get("CPU", 1)) for node in _nodes())
    return min([TASK_BYTES, *(int(share) for share in shares if share)])


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        if isinstance(error, LocalRayletDiedError):
            raise RayDied(
                "Ray on this machine died while the job ran. What is written is kept: run the same command "
                "again and it continues."
            ) from None
        cause = error.cause if isinstance(error, RayTaskError) else error
        # A disk that is full or read-only is one node's: only what is missing or forbidden is so everywhere.
        passing = isinstance(cause, OSError) and not isinstance(cause, FINAL_ERRORS)
        return Failure(_reason(error, cause), passing)


def _repeat(
    task: Task[A], result: R | Failure, again: Callable[[A, R], Task[A] | None]
) -> Task[A] | None:
    if not isinstance(result, Failure):
        return again(task.argument, result)
    if result.passing and task.failures < ERROR_RETRIES:
        return replace(task, failures=task.failures + 1)
    return None


def _reason(error: RayError, cause: Exception) -> str:
    """The cause in one line; an error that no source or store can cause shows where it came from."""
    if not isinstance(cause, OSError):
        print(error, file=sys.stderr)
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:300]


@contextmanager
def ray_session(workers: int | None = None) -> Iterator[Cluster]:
    """The cluster at RAY_ADDRESS, or a Ray of its own on this machine with `workers` cores."""
    if ray.is_initialized():
        yield Cluster(workers)
    elif os.environ.get("RAY_ADDRESS"):  # set by the user, or by Ray inside `ray job submit`
        _connect(os.environ["RAY_ADDRESS"])
        try:
            yield Cluster(workers)
        finally:
            ray.shutdown()
    else:
        with _session_folder() as folder:
            try:
                _start(workers or len(os.sched_getaffinity(0)), folder)
                yield Cluster()
            finally:
                ray.shutdown()


@contextmanager
def _session_folder() -> Iterator[str]:
    """Where a Ray of our own keeps its files; those of killed drivers are removed on the way.

    Not below the user's temporary folder: Ray's socket paths must stay under 107 bytes.
    """
    for left in Path("/tmp").glob("ray-sharding-*/owner"):
        with suppress(OSError), open(left) as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix="ray-sharding-", dir="/tmp")
    with open(Path(folder, "owner"), "w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _start(workers: int, temporary: str) -> None:
    # A token of its own: Ray would write one into the home folder, which a container may not have.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
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
    except Exception as error:  # after 30 s, that is Ray's own type
        raise UserError(
            f"Ray did not start on this machine ({type(error).__name__}: {error}). Where other work keeps "
            "all cores busy, run the same command again later; what is written is kept."
        ) from error


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
