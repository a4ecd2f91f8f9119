"""The domains of a pre-training before and after: a figure and a file of docs/results."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.experiments.figures import draw_domains
from launch.reporting.data import open_inputs
from launch.reporting.domains import Domains, measure_domains
from training.files import write_atomically
from training.run import ENVIRONMENT_FILE, load_run

SAMPLES = 100
"""Images of each set."""


def compare_domains(run: Path, docs: Path) -> str:
    """Writes both; returns the table. Raises UserError if `run` has no weights."""
    with _working_in(run.parent):  # its shard sets are named from there
        loaded = load_run(run.name)
        found = measure_domains(loaded, open_inputs(loaded.config.stream), SAMPLES)
        environment = json.loads(Path(run.name, ENVIRONMENT_FILE).read_text())
    draw_domains(
        {stage: found.layout(stage) for stage in found.stages}, docs / "results/domains.svg"
    )
    record = {
        "run": run.name,
        "step": found.step,
        "seed": loaded.config.seed,
        "commit": environment["commit"],
        "images_a_set": SAMPLES,
        "probes": {
            task: {stage: vars(probe) for stage, probe in by_stage.items()}
            for task, (_, by_stage) in found.probes().items()
        },
    }
    write_atomically(docs / "results/domains.json", json.dumps(record, indent=1) + "\n")
    return "\n".join(_table(found))


def _table(found: Domains) -> Iterator[str]:
    yield "| accuracy of a linear probe, percent | images | before | after | chance |"
    yield "|---|---|---|---|---|"
    for task, (images, probes) in found.probes().items():
        before, after = (
            f"{100 * probe.accuracy:.1f} ± {100 * probe.standard_error:.1f}"
            for probe in (probes["before"], probes["after"])
        )
        yield f"| {task} | {images} | {before} | {after} | {100 * probes['before'].chance:.0f} |"
    yield "\n![Features of all sources before and after](results/domains.svg)"


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
