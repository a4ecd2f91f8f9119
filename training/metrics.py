"""What a run says about itself: JSON lines, TensorBoard and the console, from sums over all ranks.

Every step adds to sums on the device; only a logged step waits for it, with one packed all-reduce.
"""

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.batch import Batch
from pipeline.config import Config
from pipeline.digest import LIMBS, SampleDigest
from pipeline.stats import StreamStats
from training.distributed import all_reduce_sum, is_main
from training.files import write_atomically
from training.hybrid import StepOutput
from training.statistics import ratios

METRICS_FILE = "metrics.jsonl"
RECENT_STEPS = 100
PARTS = {"rpn_": "detection", "roi_": "detection", "domain_": "domain"}
"""Loss names by their beginning -> part of the objective on the console; others stand for themselves."""


class LogConfig(Config):
    every: int = Field(default=10, gt=0)
    """Steps between lines of metrics.jsonl; values are means over these steps."""
    console_every: int = Field(default=10, gt=0)
    """Steps between console lines; printed on logged steps only."""
    tensorboard: bool = True
    check_tables_every: int = Field(default=100, gt=0)
    """Steps between comparisons of the OIM tables over ranks; they are compared before a checkpoint too."""


class Metrics:
    """Collects on every rank, writes on rank 0. `images` and `digest` go on from a resumed run's."""

    def __init__(
        self,
        folder: Path,
        config: LogConfig,
        steps: int,
        start: int,
        images: int,
        digest: SampleDigest,
        device: torch.device,
    ) -> None:
        self.config = config
        self.steps = steps
        self.device = device
        self.images = images
        self.digest = digest
        self._sums: dict[str, Tensor] = {}
        self._window = 0
        self._stream: dict[str, float] = {}
        """What the streams of all ranks had counted at the last line."""
        self._window_images = 0
        self._step_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._last_step = self._last_log = time.perf_counter()
        self._lines = None
        self._board = None
        if is_main():
            truncate_lines(folder / METRICS_FILE, start)
            self._lines = open(folder / METRICS_FILE, "a", buffering=1)  # noqa: SIM115
            if config.tensorboard:
                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(self, batches: Sequence[Batch], outputs: Sequence[StepOutput]) -> None:
        """One optimizer step's micro-batches; no outputs if it was skipped. Does not wait for the device."""
        for batch in batches:
            self.digest.add(batch)
            tasks = (batch.scenes, batch.canvases)
            self._window_images += sum(len(images.keys) for images in tasks if images is not None)
        for output in outputs:
            for kind, values in (
                ("losses", output.losses),
                ("weighted", output.weighted),
                ("statistics", output.counts),
            ):
                for name, value in values.items():
                    key, value = f"{kind}/{name}", value.detach().to(self.device, torch.float64)
                    self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._window += bool(outputs)
        now = time.perf_counter()
        self._step_s.append(now - self._last_step)
        self._last_step = now

    def due(self, step: int) -> bool:
        return step % self.config.every == 0

    def log(
        self,
        step: int,
        lr: float,
        grad_norm: Tensor,
        stream: StreamStats,
        statistics: dict[str, float],
    ) -> float:
        """Reduces and writes what was added since the last call; `step` steps are done.

        `stream`: this rank's, since it was opened. Returns the seconds that the rest of the run will take.
        Collective.
        """
        line = self._reduce(stream)
        line |= {"lr": lr, "grad_norm": grad_norm.item()}
        line["statistics"] |= statistics
        line = {"step": step, **line}
        eta_s = (self.steps - step) * float(np.mean(self._step_s))
        if self._lines is not None:
            self._lines.write(json.dumps(_finite(line)) + "\n")
            if self._board is not None:
                for name, value in _flat(line):
                    self._board.add_scalar(name, value, step)
            if step % self.config.console_every == 0 or step == self.steps:
                print(console_line(line, self.steps, eta_s), flush=True)
        return eta_s

    def __enter__(self) -> Self:
        self._last_step = self._last_log = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._board is not None:
            self._board.close()

    def _reduce(self, stream: StreamStats) -> dict[str, Any]:
        now = time.perf_counter()
        elapsed, self._last_log = now - self._last_log, now
        names = sorted(self._sums)
        counts = stream.counts()
        local = [*counts.values(), elapsed, self._window_images, *self.digest.take()]
        tail = torch.tensor(local, dtype=torch.float64, device=self.device)
        packed = torch.cat([*(self._sums[name].flatten() for name in names), tail])
        values = all_reduce_sum(packed).tolist()
        seconds, images = values[-LIMBS - 2 : -LIMBS]
        counts = dict(zip(counts, values[-len(local) : -LIMBS - 2], strict=True))
        added = {name: count - self._stream.get(name, 0) for name, count in counts.items()}
        self.digest.absorb([int(limb) for limb in values[-LIMBS:]])
        self.images += int(images)
        line: dict[str, Any] = {
            "images": self.images,
            "total": math.nan,
            "losses": {},
            "weighted": {},
        }
        left = iter(values)
        pairs: dict[str, tuple[float, float]] = {}
        for name in names:
            kind, _, key = name.partition("/")
            if kind == "statistics":
                pairs[key] = next(left), next(left)
            else:
                line[kind][key] = next(left) / self._window
        line["statistics"] = ratios(pairs)
        if self._window:  # else all its steps were skipped
            line["total"] = sum(line["weighted"].values())
        p50, p95 = np.percentile(self._step_s, [50, 95])
        line |= {
            "images_per_s": images / elapsed,
            "step_s_p50": float(p50),
            "step_s_p95": float(p95),
            "data_wait": added["wait_s"] / seconds,
            "data": data_part(counts, added, elapsed) | {"position": dict(stream.positions)},
            "sample_digest": self.digest.hex(),
        }
        self._sums, self._window, self._window_images = {}, 0, 0
        self._stream = counts
        return line


def data_part(counts: dict[str, float], added: dict[str, float], seconds: float) -> dict[str, Any]:
    """What the data of a line came from: `counts` of all ranks so far, `added` to them in `seconds`."""
    images = {name: count / seconds for name, count in _under("images/", added).items()}
    part: dict[str, Any] = {
        "images_per_s": images,
        "bytes_read_per_s": added["bytes_read"] / seconds,
        "bytes_fetched_per_s": added["bytes_fetched"] / seconds,
        "bad_samples": {name: int(count) for name, count in _under("bad/", counts).items()},
    }
    hits, misses = counts["cache_hits"], counts["cache_misses"]
    if hits + misses:
        part["cache_hit_share"] = hits / (hits + misses)
    return part


def _under(prefix: str, counts: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}


def truncate_lines(path: Path, step: int) -> None:
    """Drops the lines of steps after `step`, which a resumed run will write again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if _is_whole_until(line, step)]
        write_atomically(path, "".join(line + "\n" for line in lines))


def _is_whole_until(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except ValueError:  # the writer was killed within the line
        return False


def console_line(line: dict[str, Any], steps: int, eta_s: float) -> str:
    """For people: weighted losses by part of the objective, which add up to the total."""
    parts: dict[str, float] = {}
    for name, value in line["weighted"].items():
        part = next((PARTS[prefix] for prefix in PARTS if name.startswith(prefix)), name)
        parts[part] = parts.get(part, 0.0) + value
    losses = "  ".join(f"{part} {value:6.3f}" for part, value in sorted(parts.items()))
    minutes, seconds = divmod(round(eta_s), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"step {line['step']:>{len(str(steps))}}/{steps}  loss {line['total']:6.3f} = {losses}  "
        f"| {line['images_per_s']:.1f} images/s  data wait {100 * line['data_wait']:.0f} %  "
        f"ETA {hours}:{minutes:02d}:{seconds:02d}"
    )


def _finite(value: Any) -> Any:
    """JSON knows no NaN: a statistic without data becomes null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, value
