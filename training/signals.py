"""A request to stop (SIGTERM, SIGUSR1) that any rank may get and all ranks obey after the same step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STOPPED = 75
"""Exit code after a checkpoint on request (sysexits' EX_TEMPFAIL): start again with --resume."""


class StopRequest:
    """Signal handlers that only raise a flag: the loop looks at it once a step, on all ranks.

    DeepSpeed's launcher signals rank 0 first and the others only once it has gone, so a rank never
    waits until all have the signal: one flag stops everyone.
    """

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals only raise the flag inside; the old handlers come back afterwards."""
        previous = {number: signal.signal(number, self._raise_flag) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self.received = True
