"""What makes a step faster on GPUs: compiled parts, kernels. All off by default.

Memory layout is none of it: pixels and RoIs come with channels last, so all between them is. Weights stay
as they are, since DeepSpeed broadcasts contiguous ones alone, and lose nothing by it (measured on an H200).
"""

from collections.abc import Callable
from typing import Any

import torch

from pipeline.config import Config
from training.distributed import world_size
from training.model.norm import CrossRankNorm
from training.model.person_search import PersonSearch


class SpeedConfig(Config):
    """Changes rounding, never what is computed."""

    compile: bool = False
    """torch.compile of the dense parts: trunk, RPN head, last stage. With several ranks only of those
    without `norm: cross_rank`, whose collectives no graph holds. Needs a C compiler."""
    tf32: bool = False
    """TensorFloat-32 in what `precision` leaves in fp32: 10 bits of mantissa, for OIM's cosines too."""


def choose_kernels(config: SpeedConfig) -> None:
    """For this process's GPU."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32


def prepare(model: PersonSearch, config: SpeedConfig) -> None:
    """In place, before the optimiser is built; names of parameters stay as they are."""
    if config.compile:
        # scenes and canvases are two shapes; RoIs vary in number alone, which the second call shows
        for part, dynamic in (
            (model.backbone, False),
            (model.rpn.head, False),
            (model.head["layer4"], None),
        ):
            if world_size() == 1 or not any(isinstance(m, CrossRankNorm) for m in part.modules()):
                part.forward = _compiled(part.forward, dynamic)  # type: ignore[method-assign]


def _compiled(forward: Callable[..., Any], dynamic: bool | None) -> Callable[..., Any]:
    """One graph. `Module.compile` makes one a block of a plain `Sequential` in PyTorch 2.11, and gives up
    at the eighth."""

    def whole(*inputs: Any) -> Any:
        return forward(*inputs)

    return torch.compile(whole, dynamic=dynamic)
