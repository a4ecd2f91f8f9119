"""After a drawn number of bytes the store's connections are cut, refused or swallowed, or a writer dies."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import object_store
import pytest
import s3fs
from crash.proxy import Proxy, proxy_to
from crash.runs import Job, files, session_of
from object_store import open_uploads, s3_environment, s3_server
from stores import ceph

from pipeline.stores.store import Location
from sharding.upkeep.verify import verify

SEEDS = range(int(os.environ.get("CRASH_STORE_SEEDS", "10")))
SENT = 500_000
"""Bytes that a run sends to the store at least."""
FAULT_S = 3.0


@pytest.fixture(scope="module", params=["rclone", "ceph"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, str, str]]:
    """Port, secret and key of a store with a bucket."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "rclone":
        (folder / "bucket").mkdir()
        with s3_server(folder) as port:
            yield port, object_store.SECRET, object_store.KEY
    else:
        with ceph.ceph(folder / "c") as cluster:
            with s3_environment(cluster.port, ceph.SECRET, ceph.KEY):
                s3fs.S3FileSystem().call_s3("create_bucket", Bucket="bucket")
            yield cluster.port, ceph.SECRET, ceph.KEY


@pytest.fixture
def proxy(server: tuple[int, str, str]) -> Iterator[Proxy]:
    """What stands between the job and its store."""
    port, secret, key = server
    with proxy_to(port) as proxy, s3_environment(proxy.port, secret, key):
        yield proxy


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rerun_ends_in_the_bytes_of_an_undisturbed_run(
    seed: int,
    job_to: Callable[..., Job],
    proxy: Proxy,
    undisturbed: dict[str, bytes],
) -> None:
    rng = random.Random(seed)
    kind = ("cut", "refuse", "swallow", "kill driver", "kill worker")[seed % 5]
    url = f"s3://bucket/set-{seed}"
    job = job_to(url)
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
    assert verify(url).problems == []
    assert open_uploads("bucket") == []
    out = Location(url)
    assert {name: out.child(name).read() for name in out.list_files()} == undisturbed
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
