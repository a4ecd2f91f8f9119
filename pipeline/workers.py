"""Who renders: the loader's threads themselves, or a process for each of them.

Processes are for transforms of the user's that hold the interpreter lock; all else runs free of it, and
a process costs its memory, seconds to start and a copy of every view.
"""

import multiprocessing
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.opening import Opened
from pipeline.rendering.decode import Pixels
from pipeline.rendering.geometry import Size
from pipeline.rendering.renderer import TaskName
from pipeline.stats import reads_of
from pipeline.stores.waiting import pending_reads
from pipeline.task import Rendered, TaskStream

Tasks = Mapping[TaskName, TaskStream]
Reopen = Callable[[], Opened]
CONTEXT = multiprocessing.get_context("spawn")
"""A fork would copy locks that threads, CUDA or gloo hold."""
OTHERS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Launchers and terminals send them to all processes of a job; the trainer decides what they mean."""


class Workers(Protocol):
    """Safe in as many threads as it was made for."""

    def render(self, name: TaskName, position: int, out: tuple[Pixels, ...]) -> Rendered:
        """As `TaskStream.render`."""
        ...

    def reads(self) -> Counter[str]:
        """By the names in `stats.READS`, since it was made."""
        ...

    def under_way(self) -> list[str]:
        """What the threads may be waiting for, for people to read."""
        ...

    def kill(self) -> None:
        """Ends what `render` is at."""
        ...

    def close(self) -> None:
        """After the last `render` has returned."""
        ...


class InThreads:
    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._before = reads_of(tasks.values())

    def render(self, name: TaskName, position: int, out: tuple[Pixels, ...]) -> Rendered:
        return self._tasks[name].render(position, out)

    def reads(self) -> Counter[str]:
        return reads_of(self._tasks.values()) - self._before

    def under_way(self) -> list[str]:
        return [f"read of {url} for {seconds:.0f} s" for url, seconds in pending_reads()]

    def kill(self) -> None:
        """Nothing: a sample takes milliseconds, and stores have time-outs."""

    def close(self) -> None:
        pass


class InProcesses:
    """`count` processes that open the stream's tasks for themselves."""

    def __init__(self, tasks: Tasks, reopen: Reopen, count: int) -> None:
        self._tasks = tasks
        self._all = [_Worker(tasks, reopen) for _ in range(count)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def render(self, name: TaskName, position: int, out: tuple[Pixels, ...]) -> Rendered:
        worker = self._idle.get()
        try:
            return worker.render(name, position, out)
        except (EOFError, ConnectionError):
            raise self._death(worker, name, position) from None
        finally:
            self._idle.put(worker)

    def reads(self) -> Counter[str]:
        return sum((worker.reads for worker in self._all), Counter())

    def under_way(self) -> list[str]:
        return [
            f"process {worker.process.pid} {'at work' if worker.has_answered else 'starting'}"
            for worker in self._all
        ]

    def kill(self) -> None:
        for worker in self._all:
            worker.kill()

    def close(self) -> None:
        for worker in self._all:
            worker.close()

    def _death(self, worker: "_Worker", name: TaskName, position: int) -> UserError:
        task = self._tasks[name]
        url, offset = task.origin(task.order.at(position))
        return UserError(
            f"a worker process of the stream ended ({worker.how_it_ended()}) while it made the sample at "
            f"position {position}, {task.key(position)} in {url} at byte {offset}. Killed by SIGKILL, the "
            "machine may have run out of memory: fewer `threads` or a smaller `prefetch` need less. "
            "With an exit code, its own message stands above."
        )


class Answer(NamedTuple):
    """What a worker sends back; the pixels lie in the memory that both see."""

    rendered: Rendered | None
    error: Exception | None
    reads: Counter[str]


class _Worker:
    """A process and this side of it, for one thread at a time."""

    def __init__(self, tasks: Tasks, reopen: Reopen) -> None:
        self.reads: Counter[str] = Counter()
        self.has_answered = False
        self._sizes = {name: task.renderer.buffers for name, task in tasks.items()}
        # Memory without a name: nothing of it is left, whoever is killed.
        self._memory = CONTEXT.RawArray("B", max(map(_bytes, self._sizes.values())))
        self._connection, theirs = CONTEXT.Pipe()
        arguments = (theirs, self._memory, reopen)
        self.process = CONTEXT.Process(target=serve, args=arguments, name="stream")
        self.process.start()
        theirs.close()
        # Also if nobody closes this; at exit before multiprocessing waits for it to end by itself.
        self.kill = Finalize(self, self.process.kill, exitpriority=1)

    def render(self, name: TaskName, position: int, out: tuple[Pixels, ...]) -> Rendered:
        """Raises EOFError or ConnectionError if the process is gone."""
        self._connection.send((name, position))
        answer: Answer = self._connection.recv()
        self.reads, self.has_answered = answer.reads, True
        if answer.error is not None:
            raise answer.error
        assert answer.rendered is not None
        for view, made in zip(out, _views(self._memory, self._sizes[name]), strict=True):
            np.copyto(view, made)
        return answer.rendered

    def how_it_ended(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def close(self) -> None:
        self.kill()
        self.process.join()
        self.process.close()
        self._connection.close()


def serve(connection: Connection, memory: Any, reopen: Reopen) -> None:
    """A worker's life: answers (task, position) until the other side is gone."""
    for number in OTHERS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    tasks = reopen().tasks
    while True:
        try:
            name, position = connection.recv()
        except EOFError:
            return
        connection.send(_answer(tasks, name, position, memory))


def _answer(tasks: Tasks, name: TaskName, position: int, memory: Any) -> Answer:
    rendered: Rendered | None = None
    problem: Exception | None = None
    try:
        rendered = tasks[name].render(position, _views(memory, tasks[name].renderer.buffers))
    except UserError as error:
        problem = error
    except Exception as error:
        # As text: not every exception survives the way, and no traceback does.
        problem = _noted(RuntimeError("".join(traceback.format_exception(error))), error)
    return Answer(rendered, problem, reads_of(tasks.values()))


def _noted(error: Exception, original: Exception) -> Exception:
    for note in getattr(original, "__notes__", ()):
        error.add_note(note)
    return error


def _end_with_parent() -> None:
    """Also in the middle of a transform that never ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _bytes(sizes: Sequence[Size]) -> int:
    return sum(size.height * size.width * 3 for size in sizes)


def _views(memory: Any, sizes: Sequence[Size]) -> tuple[Pixels, ...]:
    """One behind the other."""
    ends = [_bytes(sizes[: number + 1]) for number in range(len(sizes))]
    pixels = np.frombuffer(memory, np.uint8)
    return tuple(
        pixels[end - _bytes([size]) : end].reshape(*size, 3) for size, end in zip(sizes, ends)
    )
