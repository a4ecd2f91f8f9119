"""After a drawn number of bytes the store's connections are cut, refused or swallowed, or a writer dies."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash.proxy import Proxy, proxy_to
from crash.runs import Job, files, session_of
from object_store import open_uploads, s3_environment, s3_server

from sharding.upkeep.verify import verify

SEEDS = range(int(os.environ.get("CRASH_STORE_SEEDS", "10")))
SENT = 500_000
"""Bytes that a run sends to the store at least."""
FAULT_S = 3.0
SET = "s3://bucket/set"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "store/bucket"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def proxy(bucket: Path) -> Iterator[Proxy]:
    """What stands between the job and its store."""
    with (
        s3_server(bucket.parent) as port,
        proxy_to(port) as proxy,
        s3_environment(proxy.port),
    ):
        yield proxy


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rerun_ends_in_the_bytes_of_an_undisturbed_run(
    seed: int,
    job_to: Callable[..., Job],
    bucket: Path,
    proxy: Proxy,
    undisturbed: dict[str, bytes],
) -> None:
    rng = random.Random(seed)
    kind = ("cut", "refuse", "swallow", "kill driver", "kill worker")[seed % 5]
    job = job_to(SET)
    with job.started() as process:
        proxy.faults.delay_s = rng.choice((0.0, 0.002, 0.01))
        proxy.faults.on_cut = lambda: strike(kind, proxy, process.pid)
        proxy.faults.cut_after = rng.randrange(5_000, SENT)
        code = process.wait(180)
    assert proxy.faults.cut_after is None, "the run ended before it was disturbed"
    assert code == (-signal.SIGKILL if kind == "kill driver" else 0), job.log.read_text()
    if code:
        ended = job.run()
        assert ended.code == 0, ended.output
    assert verify(SET).problems == []
    assert open_uploads("bucket") == []
    assert files(bucket / "set") == undisturbed
    job.reap()
    assert files(job.temporary) == {}


def strike(kind: str, proxy: Proxy, driver: int) -> None:
    if kind == "kill driver":
        os.kill(driver, signal.SIGKILL)
    elif kind == "kill worker":
        workers = [pid for pid in session_of(driver) if b"write_shard" in title(pid)]
        os.kill(workers[0], signal.SIGKILL)
    elif kind != "cut":
        setattr(proxy.faults, kind, True)
        threading.Thread(target=end, args=(kind, proxy)).start()


def end(kind: str, proxy: Proxy) -> None:
    time.sleep(FAULT_S)
    setattr(proxy.faults, kind, False)
    proxy.reset_all()


def title(pid: int) -> bytes:
    """Ray's workers carry the name of what they run."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
