"""What is on record, by arm and world: what tables and figures are made of."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.experiments.records import Records
from launch.experiments.settings import Experiment


@dataclass(frozen=True)
class Numbers:
    """What is on record with today's settings, in percent."""

    experiment: Experiment
    by_key: dict[tuple[str, int, int], dict[str, Any]]
    """Records by arm, world and step."""
    stale: int
    """Records of other settings, or of arms that are gone."""

    @classmethod
    def read(cls, experiment: Experiment, records: Records) -> "Numbers":
        found, stale = {}, 0
        for record in records.all():
            arm, world = record["arm"], record["world"]
            known = arm in experiment.config.arms
            if known and experiment.deciding_settings(arm, world) == record["settings"]:
                found[arm, world, record["step"]] = record
            else:
                stale += 1
        return cls(experiment, found, stale)

    def of(self, arm: str, name: str, worlds: int, moment: int = 1) -> dict[int, float]:
        """By world, of the first `worlds`: after half of the fine-tuning (0) or all of it (1)."""
        step = self.experiment.judged_steps(arm)[moment]
        found = ((world, self.by_key.get((arm, world, step))) for world in range(worlds))
        return {world: 100 * (record["numbers"][name] or 0) for world, record in found if record}

    def origins(self, arms: Sequence[str], worlds: int) -> str:
        """How many records a table is made of, on what code and processors, and how long steps took there."""
        chosen = [r for (arm, world, _), r in self.by_key.items() if arm in arms and world < worlds]
        commits = {_short(run["commit"]) for r in chosen for run in r["runs"].values()}
        commits |= {_short(r["evaluation"]["commit"]) for r in chosen}
        gpus = {gpu for r in chosen for run in r["runs"].values() for gpu in run["gpus"]}
        hardware = ", ".join(sorted({r["processor"] for r in chosen} | gpus))
        made = f"{len(chosen)} records; commits {', '.join(sorted(commits))}; on {hardware}."
        return f"{made} {_steps(chosen)}."


def _steps(records: Sequence[dict[str, Any]]) -> str:
    """Medians over runs, which shared the machine."""
    runs: dict[tuple[int, str], float] = {}
    for record in sorted(records, key=lambda record: record["step"]):
        runs |= {(record["world"], name): run["step_s"] for name, run in record["runs"].items()}
    took: dict[str, list[float]] = {"pre-training": [], "fine-tuning": []}
    for (_, name), seconds in runs.items():
        took["pre-training" if name.startswith("pretrain-") else "fine-tuning"].append(seconds)
    said = [f"{statistics.median(s):.2f} s in {what}" for what, s in took.items() if s]
    return f"A step took {' and '.join(said)} (medians over runs, not alone on the machine)"


def _short(commit: str | None) -> str:
    """`+`: of files that differ from it."""
    return "none" if commit is None else commit[:7] + "+" * commit.endswith("+")
