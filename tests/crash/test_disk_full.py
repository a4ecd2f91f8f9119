"""The disk fills up in the middle of a shard: a paragraph says so, and with room again the run goes on."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash.runs import Job, files


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        raise RuntimeError("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_run_goes_on_once_there_is_room(
    job_to: Callable[..., Job], small_disk: Path, undisturbed: dict[str, bytes]
) -> None:
    job = job_to(str(small_disk / "out"))
    ended = job.run()
    job.reap()
    assert ended.code == 2
    paragraph = ended.output.splitlines()[-1]
    assert paragraph.startswith("error: ") and "No space left on device" in paragraph
    assert "run the same command again" in paragraph
    assert not [name for name in files(small_disk / "out") if name.endswith(".tmp")]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert job.run().code == 0
    assert files(small_disk / "out") == undisturbed
