"""1, 2 and 4 ranks train alike for 20 steps, among them ranks without people, scenes, crops or any image."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.parity import FLOAT64, FP32, Case, Deviation, deviation, trained

pytestmark = pytest.mark.launched

Runs = dict[int, Path]
SIZES = (1, 2, 4)
FLOAT = Case(plain=True)
LIVE = [Case(zero_stage=stage) for stage in (0, 1)]
WHOLE = Case(frozen=True)
HALVES = [Case(zero_stage=stage, accumulation=2, frozen=True) for stage in (0, 1)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """By number of ranks, the folder of what they trained: a launch each, all at once."""
    folder = tmp_path_factory.mktemp("runs")

    def cases(size: int) -> list[Case]:
        return [*LIVE, *([WHOLE] if size == 1 else []), *HALVES, FLOAT]

    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda size: trained(size, folder, cases(size)), SIZES)
        return dict(zip(SIZES, found))


@pytest.mark.parametrize("size", [2, 4])
def test_float64(runs: Runs, rows: dict[str, Deviation], size: int) -> None:
    compare(runs, rows, FLOAT, FLOAT, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", HALVES, ids=lambda case: case.name)
def test_accumulation(runs: Runs, rows: dict[str, Deviation], size: int, case: Case) -> None:
    compare(runs, rows, WHOLE, case, size)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", LIVE, ids=lambda case: case.name)
def test_deepspeed(runs: Runs, rows: dict[str, Deviation], size: int, case: Case) -> None:
    compare(runs, rows, LIVE[0], case, size)


def test_zero(runs: Runs, rows: dict[str, Deviation]) -> None:
    compare(runs, rows, LIVE[0], LIVE[1], 1)


def compare(runs: Runs, rows: dict[str, Deviation], meant: Case, case: Case, size: int) -> None:
    """With one rank at ZeRO 0 that takes each step whole."""
    largest = deviation(runs[1] / meant.name, runs[size] / case.name)
    rows[f"{size} ranks, {case.name}"] = largest
    assert largest.value < (FLOAT64 if case.plain else FP32), largest
