"""A change of what is not numeric leaves the losses of a small run as they were."""

import json
from pathlib import Path

import pytest
from ranks import launch

from tests.golden import FILE, Golden, machine

pytestmark = pytest.mark.launched

ELSEWHERE = {"rel": 1e-2, "abs": 1e-3}
"""On another CPU or PyTorch, where ten steps let rounding grow (3e-3 without vector instructions)."""


def test_losses_are_what_they_were(tmp_path: Path) -> None:
    launch(1, Golden(tmp_path / "now.json"), tmp_path / "ranks")
    now, then = (json.loads(path.read_text()) for path in (tmp_path / "now.json", FILE))
    if then["machine"] == machine():
        assert now["steps"] == then["steps"]
    assert len(now["steps"]) == len(then["steps"])
    for step, (found, meant) in enumerate(zip(now["steps"], then["steps"])):
        assert found == pytest.approx(meant, **ELSEWHERE), f"step {step}"
