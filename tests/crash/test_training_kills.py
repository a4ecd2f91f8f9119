"""SIGKILL of one rank or all of them, in steps, inside saves and at the start: the resumed run ends with the
bytes of one that nobody disturbed: weights, running statistics, tables, optimizer and state."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash.training_moments import draw, interrupt, resume
from ranks import newest

SEEDS = range(int(os.environ.get("CRASH_TRAINING_SEEDS", "30")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_run_ends_in_the_bytes_of_an_undisturbed_one(
    seed: int,
    tiny_run: Path,
    undisturbed_run: Path,
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    moment = draw(seed)
    where = interrupt(tiny_run, tmp_path / "run", moment, tmp_path / "killed")
    record_testsuite_property(f"training {seed}", f"{moment.name}, {moment.nth}: {where}")
    assert resume(tiny_run, tmp_path / "run", tmp_path / "resumed") == newest(undisturbed_run)
