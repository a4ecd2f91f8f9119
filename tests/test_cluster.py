"""What becomes of tasks that fail: which begin again, and how often. Without Ray itself."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from pipeline.errors import UserError
from sharding import cluster
from sharding.cluster import Cluster, Failure, Task, ray_session


class FakeRay:
    """Runs a task when its result is asked for, and hands on its errors as Ray does."""

    @staticmethod
    def remote(function: Callable[[str], object]) -> "FakeRay":
        ray = FakeRay()
        ray.function = function
        return ray

    def options(self, **resources: object) -> Any:
        class Remote:
            remote = staticmethod(lambda argument: lambda: self.function(argument))

        return Remote

    @staticmethod
    def wait(pending: list[Any], **limits: object) -> tuple[list[Any], list[Any]]:
        return pending[:1], pending[1:]

    @staticmethod
    def get(reference: Callable[[], object]) -> object:
        try:
            return reference()
        except Exception as error:
            raise RayTaskError("task", "traceback", error) from None

    @staticmethod
    def nodes() -> list[Any]:
        return []

    @staticmethod
    def cluster_resources() -> dict[str, float]:
        return {"CPU": 1}


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError("the store is away"), 1 + cluster.ERROR_RETRIES),
        (OSError(errno.ESTALE, "stale handle"), 1 + cluster.ERROR_RETRIES),
        (OSError(errno.ENOSPC, "no space"), 1 + cluster.ERROR_RETRIES),
        (OSError(errno.EDQUOT, "quota"), 1 + cluster.ERROR_RETRIES),
        (OSError(errno.EROFS, "read-only"), 1 + cluster.ERROR_RETRIES),
        (PermissionError(errno.EACCES, "forbidden"), 1),
        (ValueError("a bug"), 1),
    ],
    ids=str,
)
def test_a_task_begins_again_if_that_may_help(
    error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ray", FakeRay)
    tried = []

    def task(name: str) -> None:
        tried.append(name)
        raise error

    ((name, failure),) = Cluster().run(task, [Task("shard")])
    assert isinstance(failure, Failure) and str(error) in failure.reason
    assert tried == [name] * tries


def test_a_ray_that_does_not_start_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", start)
    timed_out = pytest.raises(UserError, match=r"during startup\.\).* run the same command again")
    with timed_out, ray_session(1):
        pass
