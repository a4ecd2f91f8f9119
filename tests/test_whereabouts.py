"""A rank that leaves the common order, stops, fails or dies ends the run in time, and is named."""

import itertools
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, Script, command, ranks

from pipeline.errors import UserError
from training import hybrid
from training.distributed import all_reduce_sum
from training.engine import launched_rank
from training.whereabouts import BEAT_S, Whereabouts, Word, describe

pytestmark = pytest.mark.launched

TIMEOUT_S = 15
STEP = 2
"""In which it happens, in a loss of one rank."""


def leaves_the_order() -> None:
    all_reduce_sum(torch.zeros(1))


def stops() -> None:
    time.sleep(2 * BEAT_S)  # it has said where it is
    os.kill(os.getpid(), signal.SIGSTOP)


def fails() -> None:
    raise ValueError("a bug in a loss")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def finds_a_mistake() -> None:
    raise UserError("a mistake in the data.")


CASES: dict[str, tuple[int, Callable[[], None]]] = {
    "order": (1, leaves_the_order),
    "stopped": (1, stops),
    "failed": (1, fails),
    "dead": (0, dies),
    "mistake": (0, finds_a_mistake),
}
"""By name: the rank, and what it does."""


@dataclass(frozen=True)
class Disturbed:
    pretrain: Script
    name: str
    happened: Path
    """Holds when."""

    def __call__(self) -> None:
        victim, act = CASES[self.name]
        if launched_rank() == victim:
            self.disturb(act)
        self.pretrain()

    def disturb(self, act: Callable[[], None]) -> None:
        """Inside of the loss between views, which a step computes for scenes and for canvases."""
        original, calls = hybrid.similarity_loss, itertools.count()

        def similarity_loss(*arguments: Any) -> torch.Tensor:
            if next(calls) == 2 * STEP:
                self.happened.write_text(str(time.time()))
                act()
            return original(*arguments)

        hybrid.similarity_loss = similarity_loss


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    seconds: float
    """Since it happened."""
    said: list[str]
    """By rank."""


@pytest.fixture(scope="module")
def ended(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All of them side by side: most of the time is waiting."""
    folder = tmp_path_factory.mktemp("whereabouts")
    short = ("--set", f"engine.timeout_s={TIMEOUT_S}", "--set", "checkpoint.every=1000")

    def to_its_end(name: str, launched: Ranks) -> Ended:
        codes = launched.wait()
        seconds = time.time() - float((folder / f"{name} happened").read_text())
        return Ended(codes, seconds, [launched.output(number) for number in (0, 1)])

    with ExitStack() as stack, ThreadPoolExecutor(len(CASES)) as pool:
        results = {}
        for name in CASES:
            main = Disturbed(
                command(tiny_run, folder / name, *short), name, folder / f"{name} happened"
            )
            launched = stack.enter_context(ranks(2, main, folder / f"{name} ranks"))
            results[name] = pool.submit(to_its_end, name, launched)
        return {name: result.result() for name, result in results.items()}


IN_THE_LOSS = f"step {STEP}: train > Engine.forward > HybridModel.forward > HybridModel._similarity"


@pytest.mark.parametrize("name", CASES)
def test_the_run_ends_in_time_on_all_ranks(ended: dict[str, Ended], name: str) -> None:
    assert all(ended[name].codes), ended[name]
    waiting = TIMEOUT_S if name == "stopped" else 0  # the others' connections break
    assert ended[name].seconds < waiting + 20, ended[name]


def test_who_left_the_common_order_is_named(ended: dict[str, Ended]) -> None:
    """Gloo aborts the process that got what it did not ask for; the other one fails a collective later."""
    waiting, leaving = ended["order"].said
    assert (
        f"rank 0: failed in step {STEP}: train > Engine.forward > HybridModel.forward > " in waiting
    )
    assert "rank 1: no sign of life" in waiting
    assert "Fatal Python error: Aborted" in leaving
    assert re.search(
        r"all_reduce_sum\n.* in leaves_the_order\n.*\n.*hybrid.py.* in _similarity", leaving
    )


def test_a_stopped_rank_is_named(ended: dict[str, Ended]) -> None:
    assert re.search(
        f"rank 1: no sign of life .* last seen in {IN_THE_LOSS}", ended["stopped"].said[0]
    )
    assert "rank 0: failed in step 2: train > Engine.forward > " in ended["stopped"].said[0]


def test_where_all_are_is_also_told_before_the_time_out(ended: dict[str, Ended]) -> None:
    """By the thread: with NCCL no exception comes."""
    warning, _, rest = ended["stopped"].said[0].partition("Traceback")
    assert rest and "warning: rank 0 has stood still for" in warning
    assert "rank 0: at work or waiting in step 2: train > Engine.forward > " in warning
    assert "rank 1: no sign of life" in warning


def test_a_rank_that_fails_is_named_by_all(ended: dict[str, Ended]) -> None:
    for said in ended["failed"].said:
        assert f"rank 1: failed in {IN_THE_LOSS}" in said
        assert "ValueError: a bug in a loss" in said
        assert "rank 0: " in said


def test_who_outlives_rank_0_says_that_it_is_gone(ended: dict[str, Ended]) -> None:
    said = ended["dead"].said[1]
    assert "rank 0, which keeps it, does not answer. This is rank 1, failed in step 2" in said


def test_a_mistake_ends_a_rank_at_once_and_in_a_paragraph(ended: dict[str, Ended]) -> None:
    assert ended["mistake"].codes[0] == 2
    assert ended["mistake"].said[0].strip() == "error: a mistake in the data."


def test_ranks_in_one_place_share_a_line() -> None:
    waiting = {n: Word(7, 41, "train > all_reduce_sum (a.py:1)", 9.0) for n in range(8)}
    later = {n: Word(9, 41, "train > all_reduce_sum (a.py:1)", 11.0) for n in range(8)}
    waiting[3] = later[3] = Word(7, 40, "train (b.py:2)", 61.0)
    said = describe(waiting, later, 9).splitlines()
    assert said[1:] == [
        "  rank 3: no sign of life (stopped, killed or cut off), last seen in step 40: train (b.py:2)",
        "  rank 8: has not said anything yet",
        "  ranks 0-2, 4-7: at work or waiting in step 41: train > all_reduce_sum (a.py:1), for 11 s",
    ]


class Listener:
    """In place of the store."""

    def __init__(self) -> None:
        self.heard = threading.Event()

    def say(self, word: Word) -> None:
        self.heard.set()


def test_a_look_at_a_step_keeps_none_of_its_tensors() -> None:
    here, store = Whereabouts(TIMEOUT_S), Listener()
    thread = threading.Thread(target=here._tell, args=(store,))

    def step() -> "weakref.ref[torch.Tensor]":
        value = torch.zeros(1)
        thread.start()
        assert store.heard.wait(10)
        return weakref.ref(value)

    kept = step()() is not None
    here._ended.set()
    thread.join()
    assert not kept
