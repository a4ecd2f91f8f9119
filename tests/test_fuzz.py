"""A small, seeded part of `make fuzz-sharding`, in a process of its own: its cases are forks."""

import subprocess
import sys
from pathlib import Path


def test_damaged_releases_are_refused_or_accounted_for(miniature: tuple[Path, object]) -> None:
    script = Path(__file__).with_name("fuzz_sharding.py")
    command = [sys.executable, str(script), "--samples", "200", "--seed", "1"]
    command += ["--releases", str(miniature[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
