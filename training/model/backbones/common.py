"""What all backbones have in common: their settings, what they are built into, and small parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pipeline.config import Config

STRIDE = 16
LAYER_NORMED = ("convnext_tiny", "swin_t")
WIDTHS = (0.5, 1.0, 1.5, 2.0)
OPTIONS = {"groups": ("shufflenet_v1",), "width": ("shufflenet_v1", "shufflenet_v2")}

NormLayer = Callable[[int], nn.Module]
"""Channels -> a batch norm of the run's policy."""


class BackboneConfig(Config):
    name: Literal[
        "resnet18", "resnet50", "shufflenet_v1", "shufflenet_v2", "convnext_tiny", "swin_t"
    ] = "resnet50"
    width: float = 1.0
    """Of the two ShuffleNets: channels over those of the 1x network; 0.5, 1, 1.5 or 2."""
    groups: Literal[1, 2, 3, 4, 8] = 3
    """Of shufflenet_v1's pointwise convolutions."""
    weights: str = "imagenet"
    """`random`, `imagenet` (torchvision's IMAGENET1K_V1, downloaded once) or a file (.pth, .safetensors) in
    torchvision's naming; docs/method.md says which files of ShuffleNet v1 are read."""
    norm: Literal["cross_rank", "frozen", "re_estimated", "layer"] = "frozen"
    """Of the batch norms in trunk and last stage. `cross_rank`: by the batch of all ranks, as NAE's on one
    GPU. `frozen`: by the statistics in the file. `re_estimated`: by running statistics that follow the data.
    The last two are for trained weights only, also another run's (`start`). `layer`: convnext_tiny and
    swin_t, which have none."""
    freeze_stem: bool = True
    """Keeps the first convolution and its norm's affine as loaded, be it from `weights` or from another run
    (`start`), as NAE does; random weights are always trained."""

    @model_validator(mode="after")
    def _check(self) -> "BackboneConfig":
        if (self.name in LAYER_NORMED) != (self.norm == "layer"):
            has = "has layer norms" if self.name in LAYER_NORMED else "has batch norms"
            fitting = (
                "`layer`" if self.name in LAYER_NORMED else "cross_rank, frozen or re_estimated"
            )
            raise ValueError(f"{self.name} {has} alone: norm must be {fitting}")
        if self.width not in WIDTHS:
            raise ValueError(f"width must be one of {', '.join(map(str, WIDTHS))}")
        for option, names in OPTIONS.items():
            default = type(self).model_fields[option].default
            if self.name not in names and getattr(self, option) != default:
                raise ValueError(f"{option} is an option of {' and '.join(names)} alone")
        return self

    def require_trained(self) -> None:
        """Raises ValueError if the norms need trained weights and `weights`, the only ones, are random."""
        if self.norm in ("frozen", "re_estimated") and self.weights == "random":
            raise ValueError(
                f"`hybrid.model.backbone.norm: {self.norm}` needs trained weights; use cross_rank, or begin "
                "with weights: `backbone.weights`, or `start.weights`"
            )


@dataclass(frozen=True)
class Backbone:
    """A network split as NAE splits a ResNet: a trunk to stride 16, and the last stage, run on RoIs."""

    trunk: nn.Module
    """(N, 3, H, W) -> (N, trunk_channels, H/16, W/16), rounded up."""
    last_stage: nn.Module
    """(R, trunk_channels, h, w) -> (R, head_channels, h/2, w/2)."""
    trunk_channels: int
    head_channels: int
    stem: tuple[nn.Module, ...]
    """What `freeze_stem` keeps as loaded."""
    net: nn.Module
    """Trunk and last stage once more, in the naming of weight files and without what follows."""


class PadToStride(nn.Module):
    """Zeros below and to the right up to whole patches, which the first patches would else cut off."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))


def without_random_depth(net: nn.Module) -> None:
    """A block is never skipped: such draws would differ between ranks and between resumed runs."""
    for module in net.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
