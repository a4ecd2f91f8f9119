"""Database handles that are opened where they are used: one a file and process, kept open."""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TypeVar

Handle = TypeVar("Handle")


def once_per_process(open_file: Callable[[Path], Handle]) -> Callable[[Path], Handle]:
    """Keeps what `open_file` returns. Threads share it; a forked process drops it and opens its own."""
    lock = Lock()
    kept = lru_cache(maxsize=8)(open_file)

    def opened(path: Path) -> Handle:
        with lock:
            return kept(path.resolve())

    def start_afresh() -> None:
        nonlocal lock
        lock = Lock()
        kept.cache_clear()

    os.register_at_fork(after_in_child=start_afresh)
    return opened
