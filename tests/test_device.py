"""Where a process computes, and that a GPU that cannot be used is not passed over in silence."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from training import device
from training.device import local_device


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a GPU that PyTorch finds no way to."""
    node = tmp_path / "nvidia0"
    node.touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(device, "NODES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return node


def test_a_gpu_that_cannot_be_used_is_an_error(gpu: Path) -> None:
    with pytest.raises(UserError, match=r"nvidia0 is a GPU that PyTorch .* set DS_ACCELERATOR=cpu"):
        local_device()
    gpu.unlink()
    assert local_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DS_ACCELERATOR", "cpu"),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("CUDA_VISIBLE_DEVICES", "-1"),
        ("CUDA_VISIBLE_DEVICES", "NoDevFiles"),  # Slurm's, for a job without a GPU
    ],
)
def test_whoever_asks_for_the_cpu_gets_it(
    gpu: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert local_device() == torch.device("cpu")


def test_a_rank_takes_its_own_gpu(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device() == torch.device("cuda", 3) == current[0]
