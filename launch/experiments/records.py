"""What came out, a small file for each evaluated run: committed, so that days and machines add up."""

import datetime
import json
import platform
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.experiments.settings import TARGET
from pipeline.errors import UserError
from training.changes import compare, spell
from training.checkpoint import Checkpoint, step_name
from training.files import write_atomically
from training.metrics import METRICS_FILE
from training.run import ENVIRONMENT_FILE, load_run

FOLDER = Path(__file__).parents[2] / "docs/results"
PROTOCOL = TARGET.upper()


@dataclass(frozen=True)
class Key:
    world: int
    arm: str
    step: int
    """Of fine-tuning."""
    settings: dict[str, Any]
    """All that decide the numbers."""


@dataclass(frozen=True)
class Records:
    """world-0/ARM-STEP.json ..."""

    folder: Path = FOLDER

    def file(self, key: Key) -> Path:
        return self.folder / f"world-{key.world}" / f"{key.arm}-{key.step}.json"

    def has(self, key: Key) -> bool:
        """Raises UserError if there is one that was made with other settings."""
        path = self.file(key)
        if not path.exists():
            return False
        before = json.loads(path.read_text())["settings"]
        if before != key.settings:
            differing = "; ".join(spell(compare(before, key.settings)))
            raise UserError(
                f"{path} was made with other settings: {differing}. Take the change back, or delete it, so "
                "that it is made anew."
            )
        return True

    def add(self, key: Key, evaluation: Path, runs: Mapping[Path, int]) -> None:
        """`runs`: those that its weights come from, and after how many steps."""
        results = json.loads((evaluation / "results.json").read_text())
        content = {
            "world": key.world,
            "arm": key.arm,
            "step": key.step,
            "numbers": numbers(results),
            "weights_sha256": results["weights"]["sha256"],
            "data_sha256": results["data"]["manifest_sha256"],
            "evaluation": {
                "settings": results["settings"],
                "commit": results["environment"]["commit"],
            },
            "runs": {run.name: _describe(run, step) for run, step in runs.items()},
            "date": datetime.date.today().isoformat(),
            "processor": processor(),
            "settings": key.settings,
        }
        path = self.file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1) + "\n")

    def all(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.folder.glob("world-*/*.json")):
            yield json.loads(path.read_text())


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """Of `results.json`: search, the same among annotated boxes, and detection; shares, not percent."""
    search, detection = results["search"][PROTOCOL], results["detection"]
    shown = ("mAP", "top1", "top5", "top10")
    return {
        **{name: search[name] for name in shown},
        **{f"annotated_{name}": search["annotated_boxes"][name] for name in shown},
        "queries": search["queries"],
        "found": search["recall"],
        "detection_ap": detection["all"]["ap"],
        "detection_recall": detection["all"]["recall"],
        "searched_recall": detection["searched"]["recall"],
    }


def _describe(folder: Path, step: int) -> dict[str, Any]:
    run = load_run(folder)
    environment = json.loads((folder / ENVIRONMENT_FILE).read_text())
    state = Checkpoint.open(checkpoint(folder, step)).state
    return {
        "steps": state.step,
        "images": state.images,
        "sample_digest": state.sample_digest,
        "skipped": len(state.skipped),
        "step_s": step_seconds(folder, step),
        "precision": run.config.engine.precision,
        "commit": environment["commit"],
        "torch": environment["packages"]["torch"],
        "gpus": environment["gpus"],
    }


def step_seconds(folder: Path, step: int) -> float:
    """Median over the first `step` steps of a run, as its log has them: of the medians of its lines."""
    lines = map(json.loads, (folder / METRICS_FILE).read_text().splitlines())
    return statistics.median(line["step_s_p50"] for line in lines if line["step"] <= step)


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / step_name(step)


def processor() -> str:
    """Its name where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in told.items()}
    names = (found.get(name, "") for name in ("model name", "cpu family", "model"))
    return " ".join(filter(None, names))
