"""The node's cache: fetched once whoever asks, kept up to the limit, whole or absent, nothing left over."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_worker import shard_of
from crash.proxy import Proxy, proxy_to
from object_store import s3_environment, s3_server

from pipeline.errors import UserError
from pipeline.samples import SampleReader
from pipeline.shards import ShardSet
from pipeline.stores import node_cache
from pipeline.stores.node_cache import CacheConfig, NodeCache
from pipeline.stores.read_stats import ReadStats
from pipeline.stores.store import Location
from pipeline.stores.waiting import Abandoned, abandon_when, pending_reads
from tests.shardset import simple_set

SIZE = 1 << 20
CONTENTS = [os.urandom(SIZE) for _ in range(5)]


SHARDS = [shard_of(SIZE, hashlib.sha256(content).hexdigest()) for content in CONTENTS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    root = tmp_path_factory.mktemp("store")
    (root / "bucket").mkdir()
    for number, content in enumerate(CONTENTS):
        (root / f"bucket/{number}.tar").write_bytes(content)
    with s3_server(root) as port:
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    with proxy_to(server) as proxy, s3_environment(proxy.port):
        yield proxy


@pytest.fixture
def memory() -> Iterator[None]:
    """The same shards in this process's memory."""
    for number, content in enumerate(CONTENTS):
        Location(f"memory://bucket/{number}.tar").write(content)
    yield
    Location("memory://bucket").fs.rm("/bucket", recursive=True)


class Reader:
    """One of the node's processes."""

    def __init__(self, folder: Path, limit: float = 100, scheme: str = "memory") -> None:
        self.cache = NodeCache(CacheConfig(folder=str(folder), limit_gb=limit * SIZE / 1e9))
        self.stats, self._scheme = ReadStats(), scheme

    def open(self, number: int, **options: object) -> int:
        location = Location(f"{self._scheme}://bucket/{number}.tar")
        return self.cache.open(location, SHARDS[number], self.stats, **options)  # type: ignore[arg-type]

    def read(self, number: int) -> bytes:
        file = self.open(number)
        try:
            return os.pread(file, SIZE + 1, 0)
        finally:
            os.close(file)


def worker(folder: Path, *numbers: int) -> subprocess.Popen[str]:
    wanted = [f"s3://bucket/{n}.tar={SIZE}={SHARDS[n].tar_sha256}" for n in numbers]
    script = str(Path(__file__).with_name("cache_worker.py"))
    command = [sys.executable, script, str(folder), "1", *wanted]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def cached(folder: Path) -> set[int]:
    """Numbers of the shards that are there; there is nothing else."""
    by_name = {f"{shard.tar_sha256}.tar": number for number, shard in enumerate(SHARDS)}
    return {by_name[path.name] for path in folder.iterdir()}


def wait_until(true: object) -> None:
    ends = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_processes_that_race_fetch_each_shard_once(tmp_path: Path, proxy: Proxy) -> None:
    proxy.faults.delay_s = 0.005
    other, reader = worker(tmp_path, 0, 1, 2), Reader(tmp_path, scheme="s3")
    wait_until(lambda: any(tmp_path.glob("*.part")))
    assert [reader.read(number) for number in (0, 2, 1)] == [CONTENTS[n] for n in (0, 2, 1)]
    answer = json.loads(other.communicate("")[0])
    assert answer["fetched"] + reader.stats.bytes_fetched == 3 * SIZE
    assert answer["misses"] + reader.stats.cache_misses == 3
    assert 3 * SIZE < proxy.received < 3.1 * SIZE
    assert cached(tmp_path) == {0, 1, 2}


def test_others_take_over_from_a_killed_fetcher(tmp_path: Path, proxy: Proxy) -> None:
    proxy.faults.delay_s = 0.05
    killed = worker(tmp_path, 0)
    part = tmp_path / f"{SHARDS[0].tar_sha256}.part"
    wait_until(lambda: part.exists() and part.stat().st_size == SIZE)
    got: list[bytes] = []
    reader = Reader(tmp_path, scheme="s3")
    waiting = threading.Thread(target=lambda: got.append(reader.read(0)))
    waiting.start()
    wait_until(lambda: [url for url, _ in pending_reads()] == ["s3://bucket/0.tar"])
    assert reader.stats.bytes_fetched == 0
    killed.kill()
    killed.communicate()
    proxy.faults.delay_s = 0
    waiting.join(30)
    assert got == [CONTENTS[0]]
    assert cached(tmp_path) == {0}
    assert pending_reads() == []


def test_what_a_killed_fetcher_left_is_swept_and_what_others_left_stays(tmp_path: Path) -> None:
    (tmp_path / f"{'0' * 64}.part").write_bytes(b"left")
    (tmp_path / "report.part").write_bytes(b"the user's")
    Reader(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.part"]


@pytest.mark.usefixtures("memory")
class TestLimit:
    def test_the_least_recently_used_goes(self, tmp_path: Path) -> None:
        reader = Reader(tmp_path, limit=3)
        for number in (0, 1, 2, 0, 3):
            reader.read(number)
            time.sleep(0.02)  # ages are told apart by the system's clock tick
        assert cached(tmp_path) == {0, 2, 3}
        reader.read(4)
        assert cached(tmp_path) == {0, 3, 4}
        assert reader.stats.cache_misses == 5
        assert reader.stats.cache_hits == 1

    def test_what_is_open_stays_and_a_small_limit_is_said_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reader, other = Reader(tmp_path, limit=2), Reader(tmp_path, limit=2)
        opened = [reader.open(0), other.open(1)]
        assert capsys.readouterr().err == ""
        opened.append(reader.open(2))
        assert cached(tmp_path) == {0, 1, 2}
        reader.read(3)
        said = capsys.readouterr().err
        assert said.count("is too small: the shards that are read at once need") == 1
        for file in opened:
            os.close(file)
        reader.read(4)
        assert len(cached(tmp_path)) == 2

    def test_a_limit_that_is_far_too_small_is_said_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The first shard beyond the limit does not know how many will follow."""
        reader = Reader(tmp_path, limit=0.5)
        opened = [reader.open(number) for number in range(5)]
        said = capsys.readouterr().err.splitlines()
        assert [line.split(" GB")[0].rpartition(" ")[2] for line in said] == [
            f"{count * SIZE / 1e9:.3g}" for count in (1, 2, 4)
        ]
        for file in opened:
            os.close(file)

    def test_what_comes_later_waits_for_room_until_it_is_needed(self, tmp_path: Path) -> None:
        reader = Reader(tmp_path, limit=2)
        opened = [reader.open(0), reader.open(1)]
        needed = threading.Event()

        def fetch() -> None:
            reader.cache.wait_for_room(SHARDS[2], lambda: not needed.is_set())
            os.close(reader.open(2))

        early = threading.Thread(target=fetch)
        early.start()
        early.join(0.2)
        assert early.is_alive()
        assert cached(tmp_path) == {0, 1}
        needed.set()
        early.join(10)
        assert cached(tmp_path) == {0, 1, 2}
        for file in opened:
            os.close(file)


@pytest.mark.usefixtures("memory")
class TestArrival:
    def test_a_transfer_that_was_damaged_once_is_repeated(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._damage(monkeypatch, times=1)
        reader = Reader(tmp_path)
        assert reader.read(0) == CONTENTS[0]
        assert reader.stats.bytes_fetched == 2 * SIZE

    def test_a_shard_that_was_exchanged_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._damage(monkeypatch, times=2)
        with pytest.raises(UserError) as refused:
            Reader(tmp_path).read(0)
        assert "memory://bucket/0.tar has the sha256" in str(refused.value)
        assert SHARDS[0].tar_sha256 in str(refused.value)
        assert cached(tmp_path) == set()

    @staticmethod
    def _damage(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        def read(self: Location, start: int = 0, end: int | None = None) -> bytes:
            data = honest(self, start, end)
            reads.append(start)
            return data[:-1] + bytes([data[-1] ^ 1]) if len(reads) <= times else data

        honest, reads = Location.read, list[int]()
        monkeypatch.setattr(Location, "read", read)

    def test_large_shards_come_in_pieces(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(node_cache, "CHUNK", SIZE // 3)
        assert Reader(tmp_path).read(0) == CONTENTS[0]

    @pytest.mark.parametrize("content", [CONTENTS[0][:-1], CONTENTS[0] + b"."])
    def test_a_cut_or_grown_tar_is_not_fetched(self, tmp_path: Path, content: bytes) -> None:
        Location("memory://bucket/0.tar").write(content)
        with pytest.raises(UserError, match=rf"0\.tar has {len(content)} bytes, but the manifest"):
            Reader(tmp_path).read(0)
        assert cached(tmp_path) == set()

    def test_a_cached_file_that_was_cut_is_fetched_again(self, tmp_path: Path) -> None:
        reader = Reader(tmp_path)
        reader.read(0)
        os.truncate(tmp_path / f"{SHARDS[0].tar_sha256}.tar", SIZE // 2)
        assert reader.read(0) == CONTENTS[0]
        assert reader.stats.cache_misses == 2

    @pytest.mark.parametrize("cut", [False, True])
    def test_a_cached_file_that_was_damaged_is_named(self, tmp_path: Path, cut: bool) -> None:
        """The tar in the store is as it was written: nobody should look for the damage there."""
        local = Location(simple_set(tmp_path / "set", "detection", shards=1, per_shard=4))
        for name in local.list_files():
            Location("memory://bucket/set").child(name).write(local.child(name).read())
        cache = NodeCache(CacheConfig(folder=str(tmp_path / "cache"), limit_gb=1))
        reader = SampleReader(ShardSet("memory://bucket/set"), cache=cache)
        reader.read(0, 0, 0)
        (copy,) = (tmp_path / "cache").iterdir()
        size = copy.stat().st_size
        os.truncate(copy, 0)
        os.truncate(copy, 0 if cut else size)
        with pytest.raises(UserError) as refused:
            reader.read(0, 0, 1)
        said = str(refused.value)
        assert said.startswith(f"{copy} {'ends before' if cut else 'is not the tar'}")
        assert "memory://bucket/set/shards/v0/000000.tar and was damaged here" in said
        assert cut or "where memory://bucket/set/shards/v0/000000.parquet says" in said

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError) as refused:
            Reader(tmp_path).read(0)
        assert f"the cache in {tmp_path} cannot be used (No space left" in str(refused.value)
        assert f"{SIZE} bytes have no room there. Its limit_gb is 0.1" in str(refused.value)
        assert cached(tmp_path) == set()


def test_a_fetch_that_nobody_wants_any_more_ends_at_once(tmp_path: Path, proxy: Proxy) -> None:
    def fetch() -> None:
        abandon_when(stop)
        with pytest.raises(Abandoned):
            Reader(tmp_path, scheme="s3").open(0)
        ended.append(time.monotonic())

    stop, ended = threading.Event(), list[float]()
    thread = threading.Thread(target=fetch)
    thread.start()
    wait_until(lambda: any(tmp_path.glob("*.part")))
    proxy.faults.swallow = True
    time.sleep(0.2)
    began = time.monotonic()
    stop.set()
    thread.join(10)
    assert ended
    assert ended[0] - began < 2
    assert cached(tmp_path) == set()


@pytest.mark.parametrize("folder", ["", "s3://bucket/cache", "file:///local/cache"])
def test_a_cache_is_a_folder_of_the_node(folder: str) -> None:
    with pytest.raises(ValueError, match="is not a folder on a disk of this node"):
        CacheConfig(folder=folder, limit_gb=1)


def test_a_folder_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    NodeCache(CacheConfig(folder="~/cache", limit_gb=1))
    assert (tmp_path / "cache").is_dir()
