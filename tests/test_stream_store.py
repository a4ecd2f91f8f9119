"""The stream out of a store: what it fetches, how it waits, and how it ends when the store does."""

import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash.proxy import Proxy, proxy_to
from object_store import s3_environment, s3_server

from pipeline.errors import UserError
from pipeline.prove import Layout, run
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.stats import reads_of
from pipeline.stores import store
from pipeline.stores.node_cache import CacheConfig
from pipeline.stores.store import Location
from pipeline.stream import Stream
from tests.shardset import canvas_items, simple_set, write_shard_set

STEPS = range(12)
"""Two epochs of canvases, in two variants; three of scenes."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bucket of a set of scenes, and one of canvases in two variants."""
    root = tmp_path_factory.mktemp("store")
    simple_set(root / "bucket/crowd", "detection", shards=4, per_shard=4)
    variants = [canvas_items(24, variant=variant) for variant in (0, 1)]
    write_shard_set(
        root / "bucket/market", [[items[s : s + 4] for s in range(0, 24, 4)] for items in variants]
    )
    return root


@pytest.fixture
def proxy(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Before the store. Who waits for it waits briefly."""
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(store, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(store, "STORE_ATTEMPTS", 4)
    with s3_server(root) as port, proxy_to(port) as proxy, s3_environment(proxy.port):
        yield proxy


def config(place: str, cache: Path | None = None, **settings: Any) -> StreamConfig:
    return StreamConfig(
        scenes=(MixtureEntry(shards=f"{place}/crowd", weight=1),),
        canvases=(MixtureEntry(shards=f"{place}/market", weight=1),),
        scene_batch=4,
        canvas_batch=4,
        scene_size=(48, 64),
        canvas_size=(48, 32),
        cache=CacheConfig(folder=str(cache), limit_gb=1, ahead=4) if cache else None,
        **settings,
    )


def tar_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*.tar"))


def test_ranks_share_a_cache_and_get_the_pixels_of_the_local_set(
    root: Path, proxy: Proxy, tmp_path: Path
) -> None:
    local = run(config(f"{root}/bucket"), Layout(1, 1, 2), STEPS, pixels=True)
    cached = config("s3://bucket", tmp_path / "cache")
    before = proxy.received
    assert run(cached, Layout(2, 1, 2), STEPS, pixels=True) == local
    whole = tar_bytes(root)
    # Manifests and indexes, which are large beside these tars, come once a rank.
    assert whole < proxy.received - before < 2 * whole
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.tar")]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        f"{sha256}.tar" for sha256 in hashes
    )
    before = proxy.received
    assert run(cached, Layout(1, 1, 2), STEPS, pixels=True) == local
    assert proxy.received - before < whole / 2


def keys(stream: Stream, steps: int) -> list[str]:
    with stream.batches(0, steps) as batches:
        return [
            k for b in batches for images in (b.scenes, b.canvases) if images for k in images.keys
        ]


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_a_slow_store_shows_as_waiting_and_changes_nothing(root: Path, proxy: Proxy) -> None:
    local, slow = Stream.open(config(f"{root}/bucket")), Stream.open(config("s3://bucket"))
    proxy.faults.delay_s = 0.05
    assert keys(slow, 3) == keys(local, 3)
    assert slow.stats.wait_s > local.stats.wait_s + 0.5
    reads = reads_of(slow.tasks.values())
    assert reads["bytes_fetched"] == reads["bytes_read"] > 0


@pytest.mark.parametrize("cached", [True, False])
def test_a_store_that_goes_silent_ends_the_stream_with_its_name(
    proxy: Proxy, tmp_path: Path, cached: bool
) -> None:
    stream = Stream.open(config("s3://bucket", tmp_path if cached else None, prefetch=1))
    with stream.batches() as batches:
        next(batches)
        proxy.faults.swallow = True
        began = time.monotonic()
        with pytest.raises(UserError, match=r"cannot read s3://bucket/\S+ \(tried, 4 times"):
            for _ in batches:
                pass
    assert time.monotonic() - began < 15
    assert not stream_threads()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("cached", [True, False])
def test_an_interrupt_leaves_a_silent_store_at_once(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.setattr(store, "READ_TIMEOUT_S", 60)

    def interrupt() -> None:
        began.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    began: list[float] = []
    stream = Stream.open(config("s3://bucket", tmp_path if cached else None))
    proxy.faults.swallow = True
    # Who runs the tests in the background may have had it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt), stream.batches() as batches:
            next(batches)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began[0] < 2
    assert not stream_threads()
    assert list(tmp_path.iterdir()) == []


def test_calls_of_a_silent_store_end_after_their_attempts(proxy: Proxy) -> None:
    proxy.faults.swallow = True
    began = time.monotonic()
    with pytest.raises(OSError, match=r"Read timeout .*/bucket/crowd/manifest\.json"):
        Location("s3://bucket/crowd/manifest.json").read()
    # Were the attempts of the client multiplied with ours, it would take 30 s at least.
    assert 4 * 0.3 < time.monotonic() - began < 15
