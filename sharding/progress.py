"""How a run goes: a bar on a terminal, a line every few seconds in a log."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

from sharding.writer import ShardResult

LOG_INTERVAL_S = 10.0
LOG_FORMAT = "{desc}: {n_fmt} of {total_fmt} images, {rate_fmt}, {remaining} left{postfix}"


class Progress:
    """Images done of `total`, bytes a second, quarantined so far."""

    def __init__(self, name: str, total: int, done: int) -> None:
        terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit="image",
            file=sys.stderr if terminal else _LogLines(sys.stderr),
            mininterval=0.2 if terminal else LOG_INTERVAL_S,
            bar_format=None if terminal else LOG_FORMAT,
        )
        self._read = self._written = self._quarantined = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, result: ShardResult, images: int) -> None:
        self._read += result.read_bytes
        self._written += result.written_bytes
        self._quarantined += result.quarantined
        self._bar.set_postfix(
            read=megabytes(self._read),
            written=megabytes(self._written),
            quarantined=self._quarantined,
            refresh=False,
        )
        self._bar.update(images)


def megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


class _LogLines:
    """A stream on which each state of a progress bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()
