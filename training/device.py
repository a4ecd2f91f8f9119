"""Where this process computes: its GPU, or the CPU."""

import os
from pathlib import Path

import torch

from pipeline.device import uses_gpu
from pipeline.errors import UserError
from training.speed import SpeedConfig, choose_kernels

NODES = Path("/dev")


def local_device() -> torch.device:
    """The GPU of this rank, made the current one; the CPU where there is none or DS_ACCELERATOR=cpu is set.

    Raises UserError if there is a GPU that PyTorch cannot use: weeks of CPU would be spent unasked.
    """
    if not uses_gpu():
        require_no_unused_gpu()
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def inference_device() -> torch.device:
    """`local_device`, in whole fp32: PyTorch's default in convolutions on a GPU is TF32."""
    choose_kernels(SpeedConfig())
    return local_device()


def require_no_unused_gpu() -> None:
    """Raises UserError if this machine has a GPU that is neither used nor withheld on purpose."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip()
    withheld = visible == "-1" or not any(letter.isdigit() for letter in visible)
    asked_for = os.environ.get("DS_ACCELERATOR") == "cpu" or withheld
    if not asked_for and not uses_gpu() and (found := sorted(NODES.glob("nvidia[0-9]*"))):
        wanted = f"a driver for CUDA {torch.version.cuda}" if torch.version.cuda else "other wheels"
        raise UserError(
            f"{found[0]} is a GPU that PyTorch {torch.__version__} cannot use; it wants {wanted}. To compute "
            "on the CPUs all the same, set DS_ACCELERATOR=cpu."
        )
