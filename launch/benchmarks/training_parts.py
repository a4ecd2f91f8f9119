"""Where a step's time and its waits for the device go."""

import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from launch.benchmarks.measure import Row, exactly, spread
from launch.benchmarks.training_step import Trainer, wait_for
from training.model import person_search

ROOT = Path(__file__).parents[2]
WAITING = ("aten::_local_scalar_dense", "aten::nonzero")
"""What reads a value of a tensor or shapes one by it; boolean masks as an index are the latter."""
SHOWN = 10


def flops(trainer: Trainer) -> float:
    """Of a forward and backward: convolutions and matrix products. Norms, NMS and the rest count 0, and
    RoIAlign as torchvision writes it."""
    counter = FlopCounterMode(display=False)
    with counter:
        trainer.forward(trainer.batches[0]).total.backward()
    trainer.optimizer.zero_grad()
    return float(counter.get_total_flops())


class Stopwatch:
    """Seconds by part, exclusive of parts inside; waits for the device at both ends of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wait_for(self.device)
        start = time.perf_counter()
        self._inside.append(0.0)
        yield
        wait_for(self.device)
        whole = time.perf_counter() - start
        self.seconds[name] += whole - self._inside.pop()
        if self._inside:
            self._inside[-1] += whole

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return call(*arguments, **options)

        return timed_call


def part_rows(trainer: Trainer, rounds: int) -> list[Row]:
    """Shares of a step that waits for the device between its parts: they take more than a step in one go."""
    name, watches = trainer.variant.name, []
    for _ in range(rounds + 1):
        watch = Stopwatch(trainer.device)
        with _watched(trainer, watch):
            with watch.part("heads and losses"):
                output = trainer.forward(trainer.batches[0])
            with watch.part("backward"):
                output.total.backward()
            with watch.part("optimiser and tables"):
                trainer.update(output)
        watches.append(watch)
    watches = watches[1:]
    totals = [sum(watch.seconds.values()) for watch in watches]
    return [
        Row(
            f"{name}: {part}",
            spread([100 * w.seconds[part] / total for w, total in zip(watches, totals)]),
            "% of a step in parts",
        )
        for part in watches[0].seconds
    ]


@contextmanager
def _watched(trainer: Trainer, watch: Stopwatch) -> Iterator[None]:
    search = trainer.model.search
    rpn = search.rpn
    places = (
        (search, "normalise", "pixels to the trunk's input"),
        (search.backbone, "forward", "trunk"),
        (rpn, "_predict", "RPN head"),
        (rpn, "_sample", "matching and sampling of anchors"),
        (rpn, "_propose", "proposals and NMS"),
        (search, "sample_rois", "matching and sampling of RoIs"),
        (person_search, "roi_align", "RoIAlign"),
        (search.head["layer4"], "forward", "last stage on RoIs"),
    )
    patches = [
        mock.patch.object(place, attribute, watch.timed(part, getattr(place, attribute)))
        for place, attribute, part in places
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


def wait_rows(trainer: Trainer) -> list[Row]:
    """How often a step waits for its device, and where."""
    name = trainer.variant.name
    if trainer.device.type != "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            trainer.step()
        counts = {event.key: event.count for event in profiler.key_averages()}
        waits = sum(counts.get(operator, 0) for operator in WAITING)
        remark = "reads and nonzero, which would wait on a GPU"
        return [Row(f"{name}: waits a step", exactly(waits), remark=remark)]
    places: Counter[str] = Counter()

    def note(message: Any, *ignored: Any, **ignored_too: Any) -> None:
        if "synchroniz" in str(message):
            places[_place()] += 1

    trainer.step()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with mock.patch.object(warnings, "showwarning", note):
            torch.cuda.set_sync_debug_mode("warn")
            try:
                trainer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    lines = [
        Row(f"{name}: waits a step at {place}", exactly(count))
        for place, count in places.most_common(SHOWN)
    ]
    return [Row(f"{name}: waits a step", exactly(places.total())), *lines]


def _place() -> str:
    """The innermost line of this repository, but for the benchmark's own."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT / "training") or path.is_relative_to(ROOT / "pipeline"):
            return f"{path.relative_to(ROOT)}:{frame.lineno} `{frame.line}`".replace("|", "\\|")
    return "the benchmark itself"
