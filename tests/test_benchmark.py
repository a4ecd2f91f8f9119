"""The benchmark as a command, at toy size: its figures mean nothing, every row must be there."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch import benchmark
from launch.benchmarks import (
    bench,
    catalogue,
    fetching,
    planning,
    shuffling,
    stream,
    training,
    training_work,
)

SHARDING = (
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
STREAM = (
    "scenes, two views `exact`, over simplejpeg alone",
    "scenes, two views `fast`, over simplejpeg alone",
    "scenes `fast`: the stream's CPU above the bare work's",
    "ours over torchvision v2 in webdataset, wall",
    "peak memory of one of 8 ranks at the paper's sizes, above imports",
)
TRAINING = (
    "largest difference of 12 losses, ours to plain, fp32",
    "ours fp32 over plain fp32",
)
ORDER = (
    "20,000 samples in 2,000 shards, a rank of 1,024: opened anywhere, to its first place, CPU",
    "20,000 samples in 2,000 shards, a rank of 1,024: peak memory above imports",
    "fetched by 64 nodes of 8 ranks",
)


@pytest.mark.launched
def test_the_table_of_sharding_has_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "FULL", bench.TOY)
    monkeypatch.setattr(planning, "COUNT", 3000)
    _check(["sharding", "--planning"], SHARDING, tmp_path, capsys)


@pytest.mark.launched
def test_the_table_of_the_stream_has_every_row_without_peers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stream, "FULL", stream.TOY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    shown = _check(["stream"], STREAM, tmp_path, capsys)
    assert "ours over the best of webdataset, wall" in shown


def test_the_table_of_the_order_has_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(catalogue, "FULL", catalogue.TOY)
    monkeypatch.setattr(shuffling, "FULL", shuffling.TOY)
    for name in ("LARGE", "SMALL"):
        monkeypatch.setattr(fetching, name, replace(getattr(fetching, name), slots=2))
    shown = _check(["order"], ORDER, tmp_path, capsys)
    assert "| ours, blocks of 4 (default) |" in shown


def test_the_table_of_training_says_what_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "SMALL", training_work.TOY)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    shown = _check(["training"], TRAINING, tmp_path, capsys)
    assert "DeepSpeed's engine; not measured: ModuleNotFoundError" in shown
    assert "views `device`: waits for data" in shown
    (difference,) = (line for line in shown.splitlines() if TRAINING[0] in line)
    assert difference.endswith("| yes |")


def _check(
    command: list[str], wanted: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> str:
    """Runs it; returns what it printed."""
    out = folder / "figures.json"
    benchmark.main([*command, "--folder", str(folder), "--json", str(out)])
    shown = capsys.readouterr().out
    rows = json.loads(out.read_text())
    _, table = shown.rsplit("| figure |", 1)
    assert len(table.splitlines()) == len(rows) + 2
    for what in wanted:
        (row,) = (row for row in rows if row["what"] == what)
        assert row["target"] is not None
        assert row["figure"]["median"] >= 0 or "above" in what
    assert list(folder.iterdir()) == [out]
    return shown


def test_a_worker_needs_no_torch() -> None:
    """Half a gigabyte in each worker, and seconds before its first shard."""
    code = "import sys, sharding.writer, sharding.job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
