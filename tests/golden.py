"""Losses of a small run as they are meant to be: python -m tests.golden writes them anew.

A change that is not meant to change numbers leaves them as they are; whoever means to change them says so
by the new file.
"""

import json
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.batches import hybrid_batch
from tests.by_hand import train_by_hand
from training.engine import EngineConfig, close_distributed, init_distributed

FILE = Path(__file__).parent / "golden/losses.json"
STEPS = 10
ENGINE = {"threads": 1, "deterministic": True, "clip": 1.0, "timeout_s": 60}
OPTIMISER = {"kind": "sgd", "lr": 3e-3, "lr_per_images": None, "warmup_steps": 2}
"""Plain enough that rounding grows slowly."""


@dataclass(frozen=True)
class Golden:
    """Trains in this process, which must be free to join a process group, and writes what came out."""

    out: Path

    def __call__(self) -> None:
        device = init_distributed(EngineConfig.model_validate(ENGINE))
        batches = [hybrid_batch(step) for step in range(STEPS)]
        with tempfile.TemporaryDirectory() as folder:
            at_the_end = {"every": STEPS}
            changes = {"engine": ENGINE, "optimiser": OPTIMISER, "checkpoint": at_the_end}
            run = train_by_hand(Path(folder), batches, device, **changes)
            text = (run.path / "metrics.jsonl").read_text()
        close_distributed()
        lines = [json.loads(line) for line in text.splitlines()]
        numbers = [{"grad_norm": line["grad_norm"], **line["losses"]} for line in lines]
        found = {"machine": machine(), "steps": numbers}
        self.out.parent.mkdir(exist_ok=True)
        self.out.write_text(json.dumps(found, indent=1) + "\n")


CPU_FIELDS = ("model name", "cpu family", "model", "stepping", "cache size")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def machine() -> dict[str, Any]:
    """Where the numbers are the same to the bit: clouds sell several CPUs by one name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(reversed([[part.strip() for part in line.partition(":")[::2]] for line in lines]))
    return {
        "cpu": {name: fields.get(name) for name in CPU_FIELDS} | {"machine": platform.machine()},
        "caches": [path.read_text().strip() for path in sorted(CACHES.glob("*/size"))],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    Golden(FILE)()
