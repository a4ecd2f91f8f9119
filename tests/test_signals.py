"""Requests to stop."""

import os
import signal

import pytest
import torch

from training import signals
from training.signals import StopRequest

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_raises_the_flag_and_nothing_else(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        assert not stop.agreed(CPU)
        os.kill(os.getpid(), number)
        assert stop.agreed(CPU)
    assert signal.getsignal(number) is before


def test_one_rank_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def another_rank_was_asked(flag: torch.Tensor) -> torch.Tensor:
        return torch.maximum(flag, torch.tensor([1]))

    monkeypatch.setattr(signals, "all_reduce_max", another_rank_was_asked)
    assert StopRequest().agreed(CPU)
