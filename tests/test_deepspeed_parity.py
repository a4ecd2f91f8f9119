"""Two DeepSpeed ranks equal one, in fp32 with proposals fixed: free ones flip on differences of 1e-7."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.engine import free_port

ROOT = Path(__file__).parent.parent
WORKER = "tests/parity_worker.py"


def run_worker(command: list[str], output: Path) -> dict[str, Any]:
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*command, WORKER, str(output)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text())


@pytest.mark.launched
def test_two_deepspeed_ranks_equal_one(tmp_path: Path) -> None:
    launcher = Path(sys.executable).with_name("deepspeed")
    one = run_worker([sys.executable], tmp_path / "one.json")
    two = run_worker(
        [str(launcher), "--num_gpus", "2", "--master_port", free_port()], tmp_path / "two.json"
    )
    for stage in ("0", "1"):
        assert two[stage]["digests"][0] == two[stage]["digests"][1]
        for step, (alone, together) in enumerate(zip(one[stage]["history"], two[stage]["history"])):
            for name, value in alone.items():
                error = abs(value - together[name]) / max(1.0, abs(value))
                assert error < 1e-5, (
                    f"ZeRO {stage}, step {step}: {name} {value} != {together[name]}"
                )
