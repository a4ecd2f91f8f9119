"""SIGKILL of a worker, the driver, Ray's raylet or all of them, inside writes and renames: a re-run goes on,
and the end is the bytes of a run that nobody disturbed, with nothing left beside them.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash.moments import draw
from crash.runs import Job, files, run_into

from sharding.upkeep.verify import verify

SEEDS = range(int(os.environ.get("CRASH_SEEDS", "45")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rerun_ends_in_the_bytes_of_an_undisturbed_run(
    seed: int,
    job_to: Callable[..., Job],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    moment = draw(seed)
    job = job_to(str(tmp_path / "out"))
    ended, where = run_into(job, moment, tmp_path / "moment")
    record_testsuite_property(f"moment {seed}", f"{moment.name}, {moment.nth}: {where}")
    assert_only_whole_shards(tmp_path / "out", undisturbed)
    if moment.victim == "raylet":  # the driver outlives its own Ray, and says what to do
        assert ended.code == 0 or "run the same command again" in ended.output.splitlines()[-1]
    else:
        assert ended.code == (-9 if moment.ends_the_run else 0), ended.output
    if ended.code:
        ended = job.run()  # what is left of the first run may still be writing
    assert ended.code == 0, ended.output
    assert files(tmp_path / "out") == undisturbed
    assert verify(str(tmp_path / "out")).problems == []
    job.reap()
    assert files(job.temporary) == {}


def assert_only_whole_shards(out: Path, undisturbed: dict[str, bytes]) -> None:
    """Whatever has its final name has its final bytes, and an index never comes before its tar."""
    found = files(out)
    shown = {name: data for name, data in found.items() if not Path(name).name.startswith(".")}
    assert shown.items() <= undisturbed.items()
    for name in shown:
        if name.startswith("shards/"):
            assert name.endswith(".tar") or name.replace(".parquet", ".tar") in found
