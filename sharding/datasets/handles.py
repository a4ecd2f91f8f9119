"""Database handles that are opened where they are used: one a file and process, kept open."""

import atexit
import os
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import TypeVar

from sharding.source import Source

Handle = TypeVar("Handle")


def once_per_process(
    open_file: Callable[[Source, str], Handle],
) -> Callable[[Source, str], Handle]:
    """Keeps what `open_file(source, locator)` returns. Threads share it; a forked process drops it."""
    lock = Lock()
    kept = lru_cache(maxsize=8)(open_file)

    def opened(source: Source, locator: str) -> Handle:
        with lock:
            return kept(source, locator)

    def start_afresh() -> None:
        nonlocal lock
        lock = Lock()
        kept.cache_clear()

    os.register_at_fork(after_in_child=start_afresh)
    # Left to the interpreter's last steps, h5py can end the process by a fault.
    atexit.register(kept.cache_clear)
    return opened
