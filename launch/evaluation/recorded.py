"""Evaluations of a checkpoint that lie in the folder of its run."""

import json
from pathlib import Path

from launch.evaluation.outputs import RESULTS
from launch.evaluation.record import warnings
from training.export.measured import Evaluation

DEPTHS = ("*", "*/*")
"""Where below the run's folder they are looked for: RUN/prw, RUN/prw/test."""


def evaluations_of(run: Path, sha256: str) -> dict[Path, Evaluation | None]:
    """By their file, those of the weights with this hash; None where the file cannot be read as a record."""
    files = sorted(file for depth in DEPTHS for file in run.glob(f"{depth}/{RESULTS}"))
    found: dict[Path, Evaluation | None] = {}
    for file in files:
        try:
            results = json.loads(file.read_text())
            if results["weights"]["sha256"] == sha256:
                record = file.relative_to(run).as_posix()
                read = {**results, "record": record, "limits": warnings(results)}
                found[file] = Evaluation.model_validate(read)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            found[file] = None
    return found
