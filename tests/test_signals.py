"""Requests to stop."""

import os
import signal

import pytest
import torch

from training import distributed
from training.distributed import any_rank
from training.signals import StopRequest

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_raises_the_flag_and_nothing_else(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received
    assert signal.getsignal(number) is before


def test_one_rank_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def another_rank_was_asked(flags: torch.Tensor) -> torch.Tensor:
        return torch.maximum(flags, torch.tensor([1, 0], dtype=torch.uint8))

    monkeypatch.setattr(distributed, "all_reduce_max", another_rank_was_asked)
    assert any_rank((StopRequest().received, torch.tensor(False)), CPU) == [True, False]
