"""A few of the moments that `make test-crash` tries by the dozen: a run killed again and again ends whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from crash.moments import KINDS, Moment
from crash.runs import Job, files, run_into

from pipeline.shards import MANIFEST
from sharding.miniature import TruthImage
from sharding.upkeep.verify import verify

pytestmark = pytest.mark.launched

EVERYTHING = Moment(
    "all before an index is there", KINDS["rename of N.parquet"], 6, "everything", 0.0
)
WORKER = Moment("a worker inside a tar", KINDS["write of N.tar"], 3, "process", 0.002)
DRIVER = Moment("the driver at the end", KINDS["rename of manifest.json"], 1, "driver", 0.0)


@pytest.fixture
def job(miniature: tuple[Path, list[TruthImage]], tmp_path: Path) -> Iterator[Job]:
    job = Job(str(miniature[0] / "msmt17"), str(tmp_path / "out"), tmp_path / "job")
    yield job
    job.reap()


def test_a_run_killed_again_and_again_ends_whole(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_into(job, EVERYTHING, tmp_path / "1")[0].code == -9
    assert not (out / MANIFEST).exists()
    ended, _ = run_into(job, WORKER, tmp_path / "2")
    assert ended.code == 0, ended.output
    whole = files(out)
    assert verify(str(out)).problems == []
    (out / MANIFEST).unlink()
    assert run_into(job, DRIVER, tmp_path / "3")[0].code == -9
    assert job.run().code == 0
    assert files(out) == whole
    assert not [name for name in whole if name.endswith(".tmp")]
    job.reap()
    assert files(job.temporary) == {}
