"""Two of the moments that `make test-crash` tries by the dozen: a run that was killed ends with the bytes of
one that was not; and it may go on elsewhere, with other ranks."""

import shutil
from pathlib import Path

import pytest
from crash.training_moments import TrainingMoment, interrupt, resume
from ranks import STEPS, command, launch, lines, newest, ranks

pytestmark = pytest.mark.launched

IN_A_STEP = TrainingMoment("step", 5, "rank 1", 0.05)
"""The fifth step, right after the second checkpoint."""
IN_A_SAVE = TrainingMoment("published", 2, "ranks", 0.0, background=True)
"""Right before the second checkpoint gets its name."""
NEAR = {"rel": 1e-2, "abs": 5e-3}
"""Adam divides by the root of a gradient's square, so where that is near 0, rounding steps as far as any."""


@pytest.fixture(scope="module")
def killed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its second checkpoint; to be copied."""
    folder = tmp_path_factory.mktemp("interrupted")
    interrupt(tiny_run, folder / "run", IN_A_STEP, folder / "killed")
    assert (folder / "run/checkpoints/latest").read_text() == "step-00000004\n"
    return folder / "run"


def copy(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "run")
    return folder / "run"


def test_a_run_killed_in_a_step_ends_as_if_never_killed(
    tiny_run: Path, undisturbed_run: Path, killed: Path, tmp_path: Path
) -> None:
    undisturbed = newest(undisturbed_run)
    assert resume(tiny_run, copy(killed, tmp_path), tmp_path / "resumed") == undisturbed


def test_a_run_killed_in_a_save_ends_as_if_never_killed(
    tiny_run: Path, undisturbed_run: Path, tmp_path: Path
) -> None:
    interrupt(tiny_run, tmp_path / "run", IN_A_SAVE, tmp_path / "killed")
    undisturbed = newest(undisturbed_run)
    assert resume(tiny_run, tmp_path / "run", tmp_path / "resumed") == undisturbed


def test_a_run_goes_on_with_other_ranks_and_another_stage(
    tiny_run: Path, undisturbed_run: Path, killed: Path, tmp_path: Path
) -> None:
    """The same samples, and losses equal but for rounding."""
    run = copy(killed, tmp_path)
    on_one_rank = command(tiny_run, run, "--resume", "--set", "engine.zero_stage=1")
    launch(1, on_one_rank, tmp_path / "resumed")
    for one, two in zip(lines(run), lines(undisturbed_run), strict=True):
        assert one["sample_digest"] == two["sample_digest"]
        assert one["losses"] == pytest.approx(two["losses"], **NEAR)
    assert (run / "changes.jsonl").read_text().count("engine.zero_stage") == 1


def test_another_recipe_is_not_resumed_unasked(
    tiny_run: Path, undisturbed_run: Path, tmp_path: Path
) -> None:
    run = copy(undisturbed_run, tmp_path)
    changed = ("--resume", "--set", "hybrid.weights.oim=2", "--set", f"steps={STEPS}")
    with ranks(1, command(tiny_run, run, *changed), tmp_path / "refused") as refused:
        assert refused.wait() == [2]
        assert "hybrid.weights.oim 1.0 -> 2.0" in refused.output()
    assert not (run / "changes.jsonl").exists()
    launch(1, command(tiny_run, run, *changed, "--allow-change"), tmp_path / "allowed")
    assert "hybrid.weights.oim" in (run / "changes.jsonl").read_text()
