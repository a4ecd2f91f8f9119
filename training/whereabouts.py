"""Where each rank is, so that a collective that does not come about names the rank that is missing.

A thread of every rank looks once a second at what the main thread does, and says so in the process group's
own key-value store, in one small message. Nobody reads it before a rank fails or stands still.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from traceback import walk_stack, walk_tb
from types import FrameType

import torch.distributed as dist

from pipeline.errors import UserError
from training.distributed import rank, world_size

BEAT_S = 1.0
ANSWER_S = 5.0
"""The store's, before rank 0 counts as gone."""
STANDSTILL = 0.5
"""Share of `engine.timeout_s` in one place after which ranks 0 and 1 tell where all are. NCCL's watchdog
ends the process at the time-out, without an exception."""
ROOT = f"{Path(__file__).parents[1]}/"


@dataclass(frozen=True)
class Word:
    """What a rank said last."""

    beat: int
    step: int | None
    """The current one, counted from 0; None before the first."""
    place: str
    """The functions that it is in."""
    since_s: float
    """How long it has been there."""
    error: str = ""
    """What made it fail there."""


@dataclass
class Whereabouts:
    """This rank's; when something goes wrong, those of all ranks."""

    timeout_s: float
    """Of a collective."""
    step: int | None = None
    """The loop sets it."""
    _main: int = field(default_factory=threading.get_ident)
    _failure: Word | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def told(self) -> Iterator["Whereabouts"]:
        """Adds where all ranks are to an exception that ends the block, some three seconds later; twice that
        if rank 0 does not answer.

        UserErrors explain themselves, and are not held up. Entered by every rank after the group was formed.
        """
        faulthandler.enable()  # gloo's threads and NCCL's watchdog abort: then say where that was
        if world_size() == 1:
            yield self
            return
        store = _Store()
        thread = threading.Thread(target=self._tell, args=(store,), daemon=True)
        thread.start()
        try:
            yield self
        except UserError:
            raise
        except Exception as error:
            place = _place(walk_tb(error.__traceback__))
            said = f"{type(error).__name__}: {error}".splitlines()[0][:150]
            self._failure = Word(0, self.step, place, 0.0, said)
            error.add_note(self._report(store))
            if rank() == 0:  # it keeps the store, in which others may be reading
                time.sleep(BEAT_S)
            raise
        finally:
            self._ended.set()
            thread.join(BEAT_S)  # Python aborts if it ends while a thread is in the store

    def _tell(self, store: "_Store") -> None:
        """The thread."""
        beat, before, since, warned = 0, None, time.monotonic(), False
        while not self._ended.wait(BEAT_S if beat else 0):
            here = self._failure or Word(0, self.step, _place_of(self._main), 0.0)
            if here != before:
                before, since, warned = here, time.monotonic(), False
            stood_s, beat = time.monotonic() - since, beat + 1
            store.say(Word(beat, here.step, here.place, round(stood_s, 1), here.error))
            if stood_s > STANDSTILL * self.timeout_s and rank() < 2 and not warned:
                warned = True
                threading.Thread(target=self._warn, args=(store, stood_s), daemon=True).start()

    def _warn(self, store: "_Store", stood_s: float) -> None:
        text = f"warning: rank {rank()} has stood still for {stood_s:.0f} s. {self._report(store)}"
        if not self._ended.is_set():
            print(text, file=sys.stderr, flush=True)

    def _report(self, store: "_Store") -> str:
        """Reads twice: who has not said anything meanwhile is stopped, gone or cut off."""
        first = store.read()
        if not first:
            me = self._failure
            place = f", failed in {_at(me.step, me.place)}: {me.error}" if me else ""
            return (
                "Where the other ranks are is not known: rank 0, which keeps it, does not answer. "
                f"This is rank {rank()}{place}."
            )
        time.sleep(2.5 * BEAT_S)
        return describe(first, store.read() or first, world_size())


def describe(first: Mapping[int, Word], second: Mapping[int, Word], ranks: int) -> str:
    """Two readings, two and a half beats apart, as a paragraph that groups ranks in the same place."""
    groups: dict[str, list[int]] = {}
    for number in range(ranks):
        groups.setdefault(_describe(first.get(number), second.get(number)), []).append(number)
    # who is alone somewhere is most likely the one to look at
    ordered = sorted(groups.items(), key=lambda group: len(group[1]))
    lines = [f"  {_numbers(members)}: {text}" for text, members in ordered]
    return "\n".join(["Where the ranks are:", *lines])


def _describe(first: Word | None, second: Word | None) -> str:
    word = second or first
    if word is None:
        return "has not said anything yet"
    where = _at(word.step, word.place)
    if word.error:
        return f"failed in {where}: {word.error}"
    if first is not None and word.beat == first.beat:
        return f"no sign of life (stopped, killed or cut off), last seen in {where}"
    return f"at work or waiting in {where}" + (f", for {word.since_s:.0f} s" * (word.since_s > 5))


def _at(step: int | None, place: str) -> str:
    return f"step {step}: {place}" if step is not None else f"the start: {place}"


def _numbers(members: list[int]) -> str:
    """`rank 3`, or `ranks 0, 2-5`."""
    ends = [n for n in members if not {n - 1, n + 1} <= set(members)]
    text = ""
    for n in ends:
        text += ("-" if n - 1 in members else ", ") + str(n)
    return ("ranks " if len(members) > 1 else "rank ") + text.removeprefix(", ")


def _place_of(thread: int) -> str:
    """A look from outside: the thread pays nothing. A frame that was kept would keep the step's tensors."""
    return _place([*walk_stack(sys._current_frames()[thread])][::-1])


def _place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """`train > HybridModel.forward > ... (training/hybrid.py:310)`, of frames from the outermost on."""
    ours: list[tuple[str, str]] = []
    for frame, line in frames:
        file = frame.f_code.co_filename.removeprefix(ROOT)
        # what the training calls in the pipeline counts, what calls the training does not
        inside = file.startswith("training/") or (ours and file.startswith("pipeline/"))
        if inside and not file.endswith("/whereabouts.py"):
            ours.append((frame.f_code.co_qualname, f"{file}:{line}"))
    if not ours:
        return "the launch script"
    return " > ".join(name for name, _ in ours) + f" ({ours[-1][1]})"


class _Store:
    """One connection to the server that the process group met at. Once it failed, it is left alone."""

    def __init__(self) -> None:
        self._store: dist.Store | None = None
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with suppress(RuntimeError):  # then nobody says where it is, but training goes on
            server = dist.TCPStore(
                address,
                port,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=ANSWER_S),
            )
            self._store = dist.PrefixStore("whereabouts", server)

    def say(self, word: Word) -> None:
        try:
            if self._store is not None:
                self._store.set(str(rank()), json.dumps(asdict(word)))
        except RuntimeError:
            self._store = None

    def read(self) -> dict[int, Word]:
        """By rank; empty where rank 0 does not answer in time. In a thread: not every wait has an end."""
        found: dict[int, Word] = {}

        def read_all(store: dist.Store) -> None:
            try:
                keys = [str(number) for number in range(world_size())]
                said = keys if store.check(keys) else [key for key in keys if store.check([key])]
                for key, value in zip(said, store.multi_get(said)):
                    found[int(key)] = Word(**json.loads(value))
            except RuntimeError:
                self._store = None

        if self._store is not None:
            reader = threading.Thread(target=read_all, args=(self._store,), daemon=True)
            reader.start()
            reader.join(ANSWER_S)
        return dict(found)
