"""SIGKILL of one rank or all of them, in steps, inside saves and at the start: the resumed run ends with the
bytes of one that nobody disturbed: weights, running statistics, tables, optimizer and state."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash.training_moments import draw, interrupt, resume
from ranks import command, launch, newest, tiny_run_file

SEEDS = range(int(os.environ.get("CRASH_TRAINING_SEEDS", "30")))


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run_file(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def alone(run_file: Path) -> dict[str, bytes]:
    """The last checkpoint of the undisturbed run."""
    run = run_file.parent / "undisturbed"
    launch(2, command(run_file, run), run_file.parent / "undisturbed-ranks")
    return newest(run)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_run_ends_in_the_bytes_of_an_undisturbed_one(
    seed: int,
    run_file: Path,
    alone: dict[str, bytes],
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    moment = draw(seed)
    where = interrupt(run_file, tmp_path / "run", moment, tmp_path / "killed")
    record_testsuite_property(f"training {seed}", f"{moment.name}, {moment.nth}: {where}")
    assert resume(run_file, tmp_path / "run", tmp_path / "resumed") == alone
