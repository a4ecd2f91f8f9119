"""The loader: its memory, its waiting, its processes, and what is left when it ends."""

import gc
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline import loading, workers
from pipeline.batch import Batch
from pipeline.buffers import Buffers
from pipeline.cache import Cache
from pipeline.errors import UserError
from pipeline.loading import Batches
from pipeline.rendering.renderer import Renderer
from pipeline.samples import BadSample, SampleReader
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.shards import MANIFEST, ShardSet
from pipeline.stores.waiting import waiting_for
from pipeline.stream import Stream
from pipeline.task import Exhausted, Rendered, TaskStream
from pipeline.workers import Answer, InThreads, Reopen, Tasks
from tests.shardset import simple_set


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StreamConfig:
    root = tmp_path_factory.mktemp("sets")
    crowd = simple_set(root / "crowd", "detection", shards=1, per_shard=12)
    msmt = simple_set(root / "msmt", "reid", shards=1, per_shard=12, dataset="msmt")
    return StreamConfig(
        scenes=(MixtureEntry(shards=crowd, weight=1),),
        canvases=(MixtureEntry(shards=msmt, weight=1),),
        scene_batch=4,
        canvas_batch=4,
        scene_size=(48, 64),
        canvas_size=(48, 32),
    )


def with_processes(config: StreamConfig) -> Stream:
    """Of one process: each takes seconds to start."""
    return Stream.open(config.model_copy(update={"workers": "processes", "threads": 1}))


def contents(batch: Batch) -> Iterator[torch.Tensor]:
    for images in (batch.scenes, batch.canvases):
        assert images is not None
        yield from (images.position, images.domain, images.image, images.person, images.identity)
        for view in images.views:
            yield from (view.pixels, view.valid, view.boxes, view.use)


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    buffers = Buffers()
    first = buffers.take(2, 4, 4, 3)
    row, place = first[1].numpy()[0], first.data_ptr()
    del first
    assert buffers.take(2, 4, 4, 3).data_ptr() != place
    del row
    held = [buffers.take(2, 4, 4, 3) for _ in range(2)]
    assert place in [tensor.data_ptr() for tensor in held]


def test_a_stream_lives_on_few_buffers(config: StreamConfig) -> None:
    places = set()
    with Stream.open(config.model_copy(update={"prefetch": 2})).batches(0, 20) as batches:
        for batch in batches:
            assert batch.scenes is not None
            places.add(batch.scenes.views[0].pixels.data_ptr())
    assert len(places) <= 2 * (2 + 2)  # both views take from one pool


def test_processes_give_the_batches_of_threads_and_are_missed_when_killed(
    config: StreamConfig,
) -> None:
    threads, processes = Stream.open(config), with_processes(config)
    with threads.batches(1, 4) as wanted, processes.batches(1, 40) as got:
        for ours, theirs in zip(wanted, got):
            assert all(map(torch.equal, contents(ours), contents(theirs)))
        counted = processes.stats.counts()
        assert counted["images/crowd/train"] == counted["images/msmt/train"] == 12
        assert counted["bytes_read"] > 0
        assert processes.stats.positions == {"detection": 16, "reid": 16}
        (worker,) = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(UserError, match=r"ended \(SIGKILL\) .* \w+/train/0.* at byte \d"):
            list(got)
    assert not multiprocessing.active_children()


def test_errors_of_a_process_keep_their_origin(
    config: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer() -> Answer:
        """As it comes out of the connection."""
        made = workers._answer(tasks, "reid", 0, bytearray(2 * 48 * 32 * 3))
        return pickle.loads(pickle.dumps(made))  # noqa: S301

    tasks = Stream.open(config).tasks
    assert answer().error is None
    monkeypatch.setattr(Renderer, "_crop", lambda *_: 1 / 0)
    fault = answer().error
    assert isinstance(fault, RuntimeError)
    assert "ZeroDivisionError: division by zero" in str(fault)
    assert "msmt/train/0" in fault.__notes__[0] and "000.tar at byte" in fault.__notes__[0]
    monkeypatch.setattr(SampleReader, "read", lambda *_: (_ for _ in ()).throw(BadSample("bad")))
    unusable = answer().error
    assert isinstance(unusable, Exhausted)
    assert len(unusable.replaced) == 17
    assert "the last one: bad" in str(unusable)


def test_a_worker_process_takes_no_other_shard_set_for_the_stream(
    config: StreamConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child generation has the same digest, and other samples where somebody was forgotten."""

    def in_threads(tasks: Tasks, reopen: Reopen, _: int) -> InThreads:
        asked.append(reopen)
        return InThreads(tasks)

    asked: list[Reopen] = []
    monkeypatch.setattr(loading, "InProcesses", in_threads)
    crowd = ShardSet(simple_set(tmp_path, "detection", shards=1, per_shard=4))
    scenes = (MixtureEntry(shards=crowd.url, weight=1),)
    stream = with_processes(config.model_copy(update={"scenes": scenes}))
    stream.batches().close()
    (reopen,) = asked
    assert reopen().tasks.keys() == stream.tasks.keys()
    child = crowd.manifest.model_copy(update={"root": crowd.root_sha256, "generation": 1})
    crowd.location.child(MANIFEST).write(child.to_json())
    with pytest.raises(UserError, match="open the stream again"):
        reopen()


def hold_batches(config: StreamConfig, running: Connection, leave: bool) -> None:
    batches = with_processes(config).batches()
    next(batches)
    (child,) = multiprocessing.active_children()
    running.send(child.pid)
    while not leave:
        time.sleep(1)


def test_processes_end_with_their_parent(config: StreamConfig) -> None:
    """Killed, or at its end without having closed anything."""
    fork, (ours, theirs) = multiprocessing.get_context("fork"), multiprocessing.Pipe(False)
    parents = [
        fork.Process(target=hold_batches, args=(config, theirs, leave)) for leave in (False, True)
    ]
    for parent in parents:
        parent.start()
    children = [psutil.Process(ours.recv()) for _ in parents]
    parents[0].kill()
    for parent in parents:
        parent.join(10)
        assert not parent.is_alive()
        assert not [name for name in os.listdir("/dev/shm") if f"pym-{parent.pid}-" in name]
    assert not psutil.wait_procs(children, timeout=10)[1]


def leftovers() -> tuple[int, list[str], int]:
    """Open files, threads of streams, and child processes."""
    gc.collect()
    threads = [t.name for t in threading.enumerate() if t.name.startswith("stream")]
    return len(os.listdir("/proc/self/fd")), threads, len(multiprocessing.active_children())


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_leaving_early_leaves_nothing(config: StreamConfig, kind: str) -> None:
    """Processes are still starting then."""
    stream = Stream.open(config.model_copy(update={"workers": kind, "threads": 1}))
    for _ in range(2):  # what Python keeps for good, it has after the first time
        before = leftovers()
        with pytest.raises(KeyboardInterrupt):
            interrupt(stream.batches(), wait=kind == "threads")
    assert leftovers() == before
    assert before[1:] == ([], 0)


def interrupt(batches: Batches, wait: bool) -> None:
    with batches:
        if wait:
            next(batches)
        assert leftovers()[2] == (not wait)
        raise KeyboardInterrupt


def slow_at(position: int, wait_s: float) -> Callable[..., Rendered]:
    honest = TaskStream.render

    def render(self: TaskStream, at: int, out: Any) -> Rendered:
        if at == position:
            with waiting_for("s3://slow/000000.tar"):
                time.sleep(wait_s)
        return honest(self, at, out)

    return render


def test_a_stream_says_what_it_waits_for(
    config: StreamConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "STILL_WAITING_S", 0.2)
    monkeypatch.setattr(TaskStream, "render", slow_at(2, 0.5))
    stream = Stream.open(config.model_copy(update={"canvas_batch": 0}))
    with stream.batches(0, 2) as batches:
        assert len(list(batches)) == 2
    said = capsys.readouterr().err
    assert said.count("waited for position 2 of step 0") == 2
    assert "under way: read of s3://slow/000000.tar for 0 s" in said
    assert stream.stats.wait_s >= 0.4


def test_what_one_thread_makes_does_not_hold_up_others() -> None:
    cache: Cache[str, int] = Cache(4)
    begun, let_go = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        assert let_go.wait(10)
        return 1

    maker = threading.Thread(target=lambda: cache.get("slow", slow))
    maker.start()
    assert begun.wait(10)
    assert cache.get("other", lambda: 2) == cache.get("other", lambda: 3) == 2
    let_go.set()
    maker.join()
    assert cache.get("slow", lambda: 9) == 1


def test_a_failure_to_make_is_not_kept() -> None:
    cache: Cache[str, float] = Cache(4)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda: 1 / 0)
    assert cache.get("key", lambda: 2.0) == 2.0
