"""Threads that keep the next micro-batches in the making; decode and augmentation free the GIL."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Batch, Images, View
from pipeline.ledger import Ledger
from pipeline.render import TaskName
from pipeline.task import Rendered, TaskStream


@dataclass(frozen=True)
class Part:
    """A micro-batch: which positions of which task."""

    step: int
    positions: dict[TaskName, range]


@dataclass
class LoaderStats:
    wait_s: float = 0.0
    """Time that the consumer waited for batches."""


class Batches:
    """An iterator of batches, and the threads that make them: close it, or use it in a `with`."""

    def __init__(
        self,
        tasks: dict[TaskName, TaskStream],
        parts: Iterator[Part],
        threads: int,
        prefetch: int,
        stats: LoaderStats,
        ledger: Ledger,
    ) -> None:
        self._tasks, self._parts, self._prefetch = tasks, parts, prefetch
        self._stats, self._ledger = stats, ledger
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stream")
        self._pending: deque[_PendingBatch] = deque()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        self._fill(self._prefetch + 1)
        if not self._pending:
            self.close()
            raise StopIteration
        began = time.perf_counter()
        try:
            batch = self._pending.popleft().result(self._ledger)
        except BaseException:
            self.close()
            raise
        self._stats.wait_s += time.perf_counter() - began
        self._fill(self._prefetch)
        return batch

    def close(self) -> None:
        """Lets samples in the making end and drops the rest."""
        self._parts = iter(())
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fill(self, wanted: int) -> None:
        while len(self._pending) < wanted:
            part = next(self._parts, None)
            if part is None:
                return
            self._pending.append(self._start(part))

    def _start(self, part: Part) -> "_PendingBatch":
        pending = _PendingBatch(part.step)
        for name, positions in part.positions.items():
            task = self._tasks[name]
            # Fresh for every batch: torch's allocators recycle the memory once nobody uses it,
            # pinned memory not before copies from it have ended.
            shape = (len(positions), *task.size, 3)
            pinned = torch.cuda.is_available()
            first, second = (
                torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)
            )
            out = list(zip(first.numpy(), second.numpy(), strict=True))
            futures = [
                self._pool.submit(task.render, position, views)
                for position, views in zip(positions, out, strict=True)
            ]
            pending.images[name] = _PendingImages(positions, (first, second), futures)
        return pending


@dataclass(frozen=True)
class _PendingImages:
    positions: range
    pixels: tuple[Tensor, Tensor]
    futures: list[Future[Rendered]]

    def result(self, ledger: Ledger) -> Images:
        rendered = [future.result() for future in self.futures]
        for one in rendered:
            for record in one.replaced:
                ledger.add(record)
            ledger.count(one.dataset)
        counts = [len(one.identity) for one in rendered]
        first, second = (
            View(
                pixels=self.pixels[view],
                valid=torch.tensor([one.views[view].valid for one in rendered]),
                boxes=_joined([one.views[view].boxes for one in rendered], np.float32),
                use=_joined([one.views[view].use for one in rendered], np.int64),
            )
            for view in (0, 1)
        )
        return Images(
            views=(first, second),
            position=torch.tensor(self.positions, dtype=torch.int64),
            domain=torch.tensor([one.domain for one in rendered]),
            image=torch.from_numpy(np.repeat(np.arange(len(rendered)), counts)),
            person=_joined([np.arange(count) for count in counts], np.int64),
            identity=_joined([one.identity for one in rendered], np.int64),
            keys=tuple(one.key for one in rendered),
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
