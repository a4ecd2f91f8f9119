"""What makes a step faster on GPUs: compiled parts, kernels. All off by default.

Memory layout is none of it: pixels and RoIs come with channels last, so all between them is. Weights stay
as they are, since DeepSpeed broadcasts contiguous ones alone, and lose nothing by it (measured on an H200).
"""

import torch
from pydantic import Field

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
    roi_multiple: int = Field(default=1, gt=0)
    """RoIs of a forward are filled up to a multiple of this, without weight: kernels are chosen and compiled
    once a shape. Above 1 cuDNN tries its algorithms out (not with `deterministic`)."""


def choose_kernels(config: SpeedConfig, deterministic: bool) -> None:
    """For this process's GPU."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.benchmark = config.roi_multiple > 1 and not deterministic


def prepare(model: PersonSearch, config: SpeedConfig) -> None:
    """In place, before the optimiser is built; names of parameters stay as they are."""
    model.roi_multiple = config.roi_multiple
    if config.compile:
        # scenes and canvases are two shapes; RoIs vary in number alone, which the second call shows
        for part, dynamic in (
            (model.backbone, False),
            (model.rpn.head, False),
            (model.head["layer4"], None),
        ):
            if world_size() == 1 or not any(isinstance(m, CrossRankNorm) for m in part.modules()):
                part.compile(dynamic=dynamic)
