"""Fetches shards, and the indexes that planning needs, before their turn, in the order of need."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from pipeline.loading import Part
from pipeline.rendering.renderer import TaskName
from pipeline.samples import SampleReader
from pipeline.stores.node_cache import CacheConfig
from pipeline.stores.waiting import abandon_when
from pipeline.task import TaskStream

Wanted = tuple[SampleReader, int, int]
"""Set, variant and shard."""


def fetch_ahead(
    parts: Iterator[Part], tasks: Mapping[TaskName, TaskStream], config: CacheConfig
) -> Generator[Part, None, None]:
    """`parts`, one by one, while the shards of the next `config.ahead` come into the node's cache.

    What goes wrong ahead goes wrong again, and is said, when the sample is read. Closing it ends the
    threads; fetches in progress are abandoned.
    """
    fetcher = _Fetcher(tasks, config)
    try:
        for part in parts:
            fetcher.add(part)
            if len(fetcher.waiting) > config.ahead:
                yield fetcher.take()
        while fetcher.waiting:
            yield fetcher.take()
    finally:
        fetcher.close()


class _Fetcher:
    def __init__(self, tasks: Mapping[TaskName, TaskStream], config: CacheConfig) -> None:
        self.waiting: deque[Part] = deque()
        self._tasks, self._ahead = tasks, config.ahead
        self._added = self._taken = 0
        self._last_wanted: dict[Wanted, int] = {}
        """The latest part that wants it, of those that were looked at lately."""
        self._closed = Event()
        # One thread plans, since planning itself waits for indexes.
        self._planner = self._threads(1, "stream-plan")
        self._pool = self._threads(config.fetches, "stream-fetch")

    def _threads(self, number: int, name: str) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(number, name, initializer=abandon_when, initargs=(self._closed,))

    def add(self, part: Part) -> None:
        self.waiting.append(part)
        self._planner.submit(self._plan, self._added, part)
        self._added += 1

    def take(self) -> Part:
        self._taken += 1
        return self.waiting.popleft()

    def close(self) -> None:
        self._closed.set()
        self._planner.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def _plan(self, number: int, part: Part) -> None:
        for name, positions in part.positions.items():
            for position in positions:
                for wanted in _wanted_at(self._tasks[name], position):
                    if wanted not in self._last_wanted:
                        self._pool.submit(self._fetch, number, wanted)
                    self._last_wanted[wanted] = number
        self._last_wanted = {
            wanted: last
            for wanted, last in self._last_wanted.items()
            if last > number - self._ahead
        }

    def _fetch(self, number: int, wanted: Wanted) -> None:
        reader, variant, shard = wanted
        reader.fetch(variant, shard, can_wait=lambda: self._taken <= number)


def _wanted_at(task: TaskStream, position: int) -> set[Wanted]:
    place = task.order.at(position)
    reader = task.readers[place.source]
    return {(reader, variant, place.shard) for variant in task.variants(place)}
