"""Processes that share a node's cache are killed at drawn moments: nobody else notices, nothing is left."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cache_worker
import pytest
from crash.proxy import Proxy, proxy_to
from object_store import s3_environment, s3_server

from pipeline.stores.node_cache import CacheConfig, NodeCache

SEEDS = range(int(os.environ.get("CRASH_CACHE_SEEDS", "20")))
SIZE, SHARDS = 300_000, 12
LIMIT = 5 * SIZE


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, list[str]]]:
    """The way to a store, and what `cache_worker` is to be told of each shard in it."""
    root = tmp_path_factory.mktemp("store")
    (root / "bucket").mkdir()
    told = []
    for number in range(SHARDS):
        content = random.Random(number).randbytes(SIZE)
        (root / f"bucket/{number}.tar").write_bytes(content)
        told.append(f"s3://bucket/{number}.tar={SIZE}={hashlib.sha256(content).hexdigest()}")
    with s3_server(root) as port, proxy_to(port) as proxy, s3_environment(proxy.port):
        yield proxy, told


@pytest.mark.parametrize("seed", SEEDS)
def test_the_others_go_on(seed: int, tmp_path: Path, bucket: tuple[Proxy, list[str]]) -> None:
    proxy, told = bucket
    rng = random.Random(seed)
    proxy.faults.delay_s = rng.choice((0.001, 0.01, 0.03))
    workers = [start(tmp_path, rng.sample(told, SHARDS)) for _ in range(4)]
    for worker in workers[:3]:
        time.sleep(rng.uniform(0, 1.5))
        worker.kill()
    answer, _ = workers[3].communicate("", timeout=120)
    assert workers[3].returncode == 0
    assert json.loads(answer)["misses"] >= 1
    for worker in workers[:3]:
        worker.communicate()
    NodeCache(CacheConfig(folder=str(tmp_path), limit_gb=LIMIT / 1e9))
    files = list(tmp_path.iterdir())
    assert [path.suffix for path in files] == [".tar"] * len(files)
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in files)
    assert len(files) * SIZE <= LIMIT


def start(folder: Path, told: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, cache_worker.__file__, str(folder), str(LIMIT / 1e9), *told]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
