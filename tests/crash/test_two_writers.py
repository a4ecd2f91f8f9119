"""Two runs that write one set at the same time, each believing it is alone."""

from collections.abc import Callable
from pathlib import Path

from crash.moments import slowed
from crash.runs import Job, files

from sharding.upkeep.verify import verify


def test_two_writers_of_one_set_do_no_harm(
    job_to: Callable[..., Job], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    one, other = job_to(out), job_to(out, "other")
    with one.started(slowed(0.1)) as first, other.started(slowed(0.1)) as second:
        codes = [process.wait(180) for process in (first, second)]
    assert codes == [0, 0], one.log.read_text() + other.log.read_text()
    assert files(tmp_path / "out") == undisturbed
    assert verify(out).problems == []
