"""Timing things against each other: in turns, by the CPU time of the whole process tree, by medians.

Others may use the machine too. Ratios of CPU time, taken round by round, suffer least from that.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Work = Callable[[], int]
"""Does something to a number of images, and returns that number."""


class Cost(NamedTuple):
    images: int
    cpu_s: float
    wall_s: float


class Spread(NamedTuple):
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of a table of figures."""

    what: str
    figure: Spread | None
    """None: not measured, the remark says why."""
    unit: str = ""
    target: float | None = None
    """None: for information."""
    better: Literal["higher", "lower"] = "higher"
    remark: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None or self.figure is None:
            return None
        above = self.figure.median >= self.target
        return above if self.better == "higher" else self.figure.median <= self.target


def in_turns(
    works: dict[str, Work], rounds: int, before_each: Callable[[], None] = lambda: None
) -> dict[str, list[Cost]]:
    """Costs of each by round. A first round is not counted; every second one runs backwards."""
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name in list(works) if turn % 2 else reversed(works):
            before_each()
            cost = measured(works[name])
            if turn:
                costs[name].append(cost)
    return costs


def measured(work: Work) -> Cost:
    cpu, wall = _cpu_seconds(), time.perf_counter()
    images = work()
    return Cost(images, _cpu_seconds() - cpu, time.perf_counter() - wall)


def _cpu_seconds() -> float:
    """Of this process, to the nanosecond, and of all below it, to a hundredth of a second."""
    total = time.process_time()
    try:
        import psutil
    except ImportError:  # on a borrowed GPU, say: training is measured by wall time alone
        return total
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def per_cpu_second(costs: Sequence[Cost]) -> list[float]:
    return [cost.images / cost.cpu_s for cost in costs]


def per_second(costs: Sequence[Cost]) -> list[float]:
    return [cost.images / cost.wall_s for cost in costs]


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of the rounds, one by one."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def exactly(value: float) -> Spread:
    return Spread(value, value, value)


def peak_bytes() -> int:
    """Most memory that this process has had resident, ever or since `restart_peak`."""
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    return _status_bytes("VmRSS")


def restart_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))


@contextmanager
def one_core() -> Iterator[None]:
    """Keeps this process, and what it starts, on the last of its cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| figure | median (least to most) | target | met |", "|---|---|---|---|"]
    for row in rows:
        shown = "" if row.figure is None else _shown(row.figure)
        sign = "at least" if row.better == "higher" else "at most"
        target = "" if row.target is None else f"{sign} {_number(row.target)}"
        met = {True: "yes", False: "no", None: ""}[row.met]
        what = f"{row.what}; {row.remark}" if row.remark else row.what
        lines.append(f"| {what} | {shown} {row.unit} | {target} | {met} |".replace("  ", " "))
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {**vars(row), "figure": row.figure and row.figure._asdict(), "met": row.met} for row in rows
    ]


def _shown(figure: Spread) -> str:
    if figure.low == figure.high:
        return _number(figure.median)
    return f"{_number(figure.median)} ({_number(figure.low)} to {_number(figure.high)})"


def _number(value: float) -> str:
    """Three digits, at least."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
