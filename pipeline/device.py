"""Whether this process computes on a GPU."""

import os

import torch


def uses_gpu() -> bool:
    """On one that PyTorch finds, unless DS_ACCELERATOR=cpu leaves it alone."""
    return os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()
