"""What the suite measured, row by row, below its results: for docs/benchmarks.md."""

import pytest

from tests.parity import Deviation

ROWS: dict[str, Deviation] = {}


@pytest.fixture(scope="session")
def rows() -> dict[str, Deviation]:
    """What was compared -> the largest deviation."""
    return ROWS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for row, largest in ROWS.items():
        terminalreporter.write_line(f"{largest.value:.1e}  {row}  ({largest.where})")
