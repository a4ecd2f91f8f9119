"""A bounded cache for threads: what one thread is making, the others wait for.

If nobody wants that thread's result any more (`Abandoned`), one of those that wait makes the value.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

from pipeline.stores.waiting import Abandoned, pause

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps the `capacity` values used last; a failure to make one is not kept."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = Lock()
        self._entries: OrderedDict[K, Future[V]] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        while True:
            entry, is_mine = self._entry(key)
            if is_mine:
                self._fill(key, entry, make)
                return entry.result()
            try:
                return entry.result()
            except Abandoned:
                pause(0)  # raises it again if this thread's result is not wanted either

    def _entry(self, key: K) -> tuple[Future[V], bool]:
        """And whether it is new, to be filled by the caller."""
        with self._lock:
            entry = self._entries.get(key)
            missing = entry is None
            if entry is None:
                entry = self._entries[key] = Future()
                if len(self._entries) > self._capacity:
                    self._entries.popitem(last=False)
            else:
                self._entries.move_to_end(key)
        return entry, missing

    def _fill(self, key: K, entry: Future[V], make: Callable[[], V]) -> None:
        try:
            entry.set_result(make())
        except BaseException as error:
            with self._lock:
                if self._entries.get(key) is entry:
                    del self._entries[key]
            entry.set_exception(error)
