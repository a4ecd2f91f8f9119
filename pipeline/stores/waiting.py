"""Waiting for stores: seen from outside while it lasts, and ended once nobody wants the result any more."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

LOOK_S = 0.1
"""Between two looks at whether a result is still wanted."""

T = TypeVar("T")

_under_way: dict[int, tuple[str, float]] = {}
"""What threads, by their id, wait for, and since when."""
_thread = threading.local()


class Abandoned(Exception):
    """Nobody wants the result any more."""


def abandon_when(stop: threading.Event) -> None:
    """From now on, what this thread waits for raises Abandoned soon after `stop` is set."""
    _thread.stop = stop


def pending_reads() -> list[tuple[str, float]]:
    """URL and seconds so far of what threads of this process wait for from stores, longest first."""
    now = time.monotonic()
    waits = [(url, now - began) for url, began in list(_under_way.values())]
    return sorted(waits, key=lambda wait: -wait[1])


@contextmanager
def waiting_for(url: str) -> Iterator[None]:
    """Shows in `pending_reads`. Inside of another, the outer one's time goes on."""
    thread = threading.get_ident()
    if thread in _under_way:
        yield
        return
    _under_way[thread] = (url, time.monotonic())
    try:
        yield
    finally:
        del _under_way[thread]


def pause(seconds: float) -> None:
    """Raises Abandoned."""
    if _stop().wait(seconds):
        raise Abandoned


def wait_for(result: Future[T]) -> T:
    """Raises Abandoned, and cancels what makes `result`."""
    stop = _stop()
    while not result.done() and not stop.is_set():
        wait([result], LOOK_S)
    if not result.done():
        result.cancel()
        raise Abandoned
    return result.result()


def _stop() -> threading.Event:
    stop: threading.Event | None = getattr(_thread, "stop", None)
    if stop is None:
        stop = _thread.stop = threading.Event()
    return stop
