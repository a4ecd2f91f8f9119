"""What the crash suite shares: a source, and the bytes of a run that nobody disturbed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash.runs import Job, files

from sharding.miniature import TruthImage


@pytest.fixture(scope="session")
def source(miniature: tuple[Path, list[TruthImage]]) -> str:
    return str(miniature[0] / "msmt17")


@pytest.fixture(scope="session")
def undisturbed(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the set, by name."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(source, str(folder / "out"), folder)
    ended = job.run()
    job.reap()
    assert ended.code == 0, ended.output
    return files(folder / "out")


@pytest.fixture
def job_to(source: str, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Makes the job that writes to a URL, with a folder of its own; nothing of it outlives the test."""
    jobs = []

    def make(out: str, folder: str = "job") -> Job:
        jobs.append(Job(source, out, tmp_path / folder))
        return jobs[-1]

    yield make
    for job in jobs:
        job.reap()
