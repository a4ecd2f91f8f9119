"""On what a run ran."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

DECIDING_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "simplejpeg")
"""What a model makes of an image file depends on them."""


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, for whoever compares two runs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in (*DECIDING_PACKAGES, "deepspeed")},
        "commit": git_commit(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "command": sys.argv,
    }


def git_commit() -> str | None:
    """Commit of the code, with `+` if files differ from it; None outside of a git checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
