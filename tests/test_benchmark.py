"""The benchmark as a command, at toy size: its figures mean nothing, every row must be there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import benchmark
from launch.benchmarks import bench, planning

WHAT = (
    "header over webdataset's TarWriter",
    "full over bare decoding",
    "canvases over Pillow",
    "canvases over their decoding and encoding",
    "canvases, 2 Ray workers over 1, wall",
    "Ray over a loop, full, CPU",
    "Ray over a loop, canvases, wall",
    "peak memory of a worker, baseline",
    "asked for instead of taken",
    "planning 3,000 crops, CPU",
    "planning 3,000 crops again, all written, peak memory",
)


@pytest.mark.launched
def test_the_table_has_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "FULL", bench.TOY)
    monkeypatch.setattr(planning, "COUNT", 3000)
    out = tmp_path / "figures.json"
    benchmark.main(["sharding", "--planning", "--folder", str(tmp_path), "--json", str(out)])
    shown = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = json.loads(out.read_text())
    assert len(shown) == len(rows) + 2
    for what in WHAT:
        (row,) = (row for row in rows if row["what"] == what)
        assert row["target"] is not None and row["figure"]["median"] >= 0
    assert list(tmp_path.iterdir()) == [out]


def test_a_worker_needs_no_torch() -> None:
    """Half a gigabyte in each worker, and seconds before its first shard."""
    code = "import sys, sharding.writer, sharding.job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
