"""The domains of a world's sources before and after pre-trainings: a figure and a file of docs/results."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from launch.experiments.figures import draw_domains
from launch.reporting.data import open_inputs
from launch.reporting.domains import Domains, measure_domains
from pipeline.errors import UserError
from training.features import Probe
from training.files import write_atomically
from training.run import ENVIRONMENT_FILE, Run, load_run

SAMPLES = 100
"""Images of each set."""


def compare_domains(runs: Sequence[Path], docs: Path) -> str:
    """Writes both; returns the table.

    Raises UserError if one of `runs` has no weights, or if they are not of one world.
    """
    if len({run.name for run in runs}) < len(runs):
        raise UserError("two of the runs have one name: name pre-trainings of one world.")
    measured = [_measured(run) for run in runs]
    found = {run.name: domains for run, (domains, _) in zip(runs, measured)}
    _require_same_start(found)
    first = next(iter(found.values()))
    layouts = {"before": first.layout("before")}
    layouts |= {f"after {name}": domains.layout("after") for name, domains in found.items()}
    draw_domains(layouts, docs / "results/domains.svg")
    records = [record for _, record in measured]
    write_atomically(docs / "results/domains.json", json.dumps(records, indent=1) + "\n")
    return "\n".join(_table(found))


def _measured(run: Path) -> tuple[Domains, dict[str, Any]]:
    """And what is recorded of it."""
    with _working_in(run.parent):  # its shard sets are named from there
        loaded = load_run(run.name)
        found = measure_domains(loaded, open_inputs(loaded.config.stream), SAMPLES)
        return found, _record(loaded, found)


def _require_same_start(found: Mapping[str, Domains]) -> None:
    (name, first), *others = found.items()
    for other, domains in others:
        if not np.array_equal(first.stages["before"], domains.stages["before"]):
            raise UserError(
                f"{name} and {other} see other images or begin with other weights: name pre-trainings of "
                "one world that have the same datasets."
            )


def _record(run: Run, found: Domains) -> dict[str, Any]:
    environment = json.loads((run.folder.path / ENVIRONMENT_FILE).read_text())
    return {
        "run": run.folder.path.name,
        "step": found.step,
        "seed": run.config.seed,
        "commit": environment["commit"],
        "images_a_set": SAMPLES,
        "probes": {
            task: {stage: vars(probe) for stage, probe in by_stage.items()}
            for task, (_, by_stage) in found.probes().items()
        },
    }


def _table(found: Mapping[str, Domains]) -> Iterator[str]:
    after = [f"after {name}" for name in found]
    yield _row("accuracy of a linear probe, percent", "images", "before", *after, "chance")
    yield "|---" * (4 + len(after)) + "|"
    probes = {name: domains.probes() for name, domains in found.items()}
    for task, (images, first) in next(iter(probes.values())).items():
        told = [_percent(by_task[task][1]["after"]) for by_task in probes.values()]
        chance = f"{100 * first['before'].chance:.0f}"
        yield _row(task, str(images), _percent(first["before"]), *told, chance)
    yield "\n![Features of all sources before and after](results/domains.svg)"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(probe: Probe) -> str:
    return f"{100 * probe.accuracy:.1f} ± {100 * probe.standard_error:.1f}"


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
