"""Keeps the next micro-batches in the making: decode and augmentation free the interpreter.

Peak memory, beyond what the shard sets need:
    views        (prefetch + 2) x views of a micro-batch x H x W x 3 bytes; one share is the consumer's
    each thread  its sample: coded, decoded (3 bytes a pixel), and some working copies of a view
    processes    the views of a sample each, and a Python with torch
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Batch, Images
from pipeline.buffers import Buffers
from pipeline.ledger import Ledger
from pipeline.opening import Opened
from pipeline.rendering.renderer import Renderer, TaskName
from pipeline.settings import StreamConfig
from pipeline.stats import StreamStats
from pipeline.stores.waiting import abandon_when
from pipeline.task import Exhausted, Rendered, TaskStream
from pipeline.workers import InProcesses, InThreads, Workers

STILL_WAITING_S = 30.0
"""Between two messages about what the consumer waits for."""


@dataclass(frozen=True)
class Part:
    """A micro-batch: which positions of which task."""

    step: int
    positions: dict[TaskName, range]


class Batches:
    """An iterator of batches, and the threads that make them: close it, or use it in a `with`."""

    def __init__(
        self,
        tasks: dict[TaskName, TaskStream],
        parts: Iterator[Part],
        config: StreamConfig,
        reopen: Callable[[], Opened],
        stats: StreamStats,
    ) -> None:
        """`reopen` gives a worker process tasks equal to `tasks`."""
        self._tasks, self._parts, self._prefetch = tasks, parts, config.prefetch
        self._stats = stats
        self._reads_before = stats.reads
        self._buffers = Buffers()
        self._closed = Event()
        self._workers: Workers = (
            InProcesses(tasks, reopen, config.threads)
            if config.workers == "processes"
            else InThreads(tasks)
        )
        self._pool = ThreadPoolExecutor(
            config.threads, "stream", initializer=abandon_when, initargs=(self._closed,)
        )
        self._pending: deque[_PendingBatch] = deque()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        try:
            self._fill()
            if not self._pending:
                raise StopIteration
            began = time.perf_counter()
            batch = self._pending.popleft().result(self._stats.ledger)
            self._count(batch, time.perf_counter() - began)
        except BaseException:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """Ends what is in the making, and all threads and processes; again, it does nothing."""
        if self._closed.is_set():
            return
        if isinstance(self._parts, Generator):  # it may have threads of its own
            self._parts.close()
        self._parts = iter(())
        self._pending.clear()
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._workers.kill()
        self._pool.shutdown(wait=True)
        self._workers.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fill(self) -> None:
        while len(self._pending) <= self._prefetch:
            part = next(self._parts, None)
            if part is None:
                return
            self._pending.append(self._start(part))

    def _start(self, part: Part) -> "_PendingBatch":
        pending = _PendingBatch(part.step)
        for name, positions in part.positions.items():
            renderer = self._tasks[name].renderer
            buffers = [self._buffers.take(len(positions), *size, 3) for size in renderer.buffers]
            futures = [
                self._pool.submit(self._workers.render, name, position, out)
                for position, out in zip(positions, zip(*(one.numpy() for one in buffers)))
            ]
            pending.images[name] = _PendingImages(
                part.step, positions, renderer, buffers, futures, self._workers
            )
        return pending

    def _count(self, batch: Batch, waited_s: float) -> None:
        stats = self._stats
        stats.wait_s += waited_s
        stats.reads = self._reads_before + self._workers.reads()
        stats.positions = {name: (batch.step + 1) * t.batch for name, t in self._tasks.items()}


@dataclass(frozen=True)
class _PendingImages:
    step: int
    positions: range
    renderer: Renderer
    buffers: list[Tensor]
    futures: list[Future[Rendered]]
    workers: Workers

    def result(self, ledger: Ledger) -> Images:
        rendered = [
            self._wait_for(future, position, ledger)
            for future, position in zip(self.futures, self.positions, strict=True)
        ]
        counts = [len(one.identity) for one in rendered]
        views, unrendered = self.renderer.join(self.buffers, [one.views for one in rendered])
        return Images(
            views=views,
            position=torch.tensor(self.positions, dtype=torch.int64),
            domain=torch.tensor([one.domain for one in rendered]),
            image=torch.from_numpy(np.repeat(np.arange(len(rendered)), counts)),
            person=_joined([np.arange(count) for count in counts], np.int64),
            identity=_joined([one.identity for one in rendered], np.int64),
            keys=tuple(one.key for one in rendered),
            unrendered=unrendered,
        )

    def _wait_for(self, future: Future[Rendered], position: int, ledger: Ledger) -> Rendered:
        """In the order of the positions, so that the ledger stops a run at the same one each time."""
        began = time.perf_counter()
        while not future.done() and not wait([future], STILL_WAITING_S).done:
            self._say_waiting(position, time.perf_counter() - began)
        try:
            rendered = future.result()
        except Exhausted as error:
            ledger.add(error.replaced)
            raise
        ledger.add(rendered.replaced)
        ledger.count(rendered.dataset, replaced=bool(rendered.replaced))
        return rendered

    def _say_waiting(self, position: int, seconds: float) -> None:
        print(
            f"the stream has waited for position {position} of step {self.step} for {seconds:.0f} s; under "
            f"way: {', '.join(self.workers.under_way()) or 'no read'}",
            file=sys.stderr,
            flush=True,
        )


@dataclass(frozen=True)
class _PendingBatch:
    step: int
    images: dict[TaskName, _PendingImages] = field(default_factory=dict)

    def result(self, ledger: Ledger) -> Batch:
        done = {name: pending.result(ledger) for name, pending in self.images.items()}
        return Batch(self.step, done.get("detection"), done.get("reid"))


def _joined(arrays: list[NDArray], kind: type) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(kind, copy=False))
