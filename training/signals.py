"""A request to stop (SIGTERM, SIGUSR1) that any rank may get and all ranks obey after the same step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from training.distributed import all_reduce_max

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STOPPED = 75
"""Exit code after a checkpoint on request (sysexits' EX_TEMPFAIL): start again with --resume."""


class StopRequest:
    """Signal handlers that only raise a flag: the loop asks for it once a step.

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

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked to stop. Collective: every rank calls it once a step."""
        flag = torch.tensor([int(self.received)], device=device)
        return bool(all_reduce_max(flag).item())

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self.received = True
