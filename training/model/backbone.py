"""Backbones, split as NAE splits them: a trunk to stride 16 and the last stage, which runs on RoIs."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pipeline.config import Config
from pipeline.errors import UserError
from training.model.norm import CrossRankNorm, NormContext


class BackboneConfig(Config):
    name: Literal["resnet18", "resnet50"] = "resnet50"
    weights: str = "imagenet"
    """`random`, `imagenet` (torchvision's, downloaded once) or a file (.pth, .safetensors) in torchvision's
    naming."""
    norm: Literal["cross_rank", "frozen"] = "frozen"
    """Frozen is for pre-trained trunks only: random weights need `cross_rank`."""
    freeze_stem: bool = True
    """Keeps conv1 and bn1's affine as loaded, as NAE does; random weights are always trained."""


@dataclass
class Backbone:
    trunk: nn.Sequential
    """(N, 3, H, W) -> (N, trunk_channels, H/16, W/16)."""
    last_stage: nn.Module
    """(R, trunk_channels, h, w) -> (R, head_channels, h/2, w/2)."""
    trunk_channels: int
    head_channels: int


def build_backbone(config: BackboneConfig, context: NormContext) -> Backbone:
    """Raises UserError if the weights cannot be had or do not fit."""
    if config.norm == "frozen" and config.weights == "random":
        raise UserError("`backbone.norm: frozen` needs trained `backbone.weights`; use cross_rank.")
    return BUILDERS[config.name](config, context)


def _resnet(config: BackboneConfig, context: NormContext) -> Backbone:
    def norm_layer(channels: int) -> nn.Module:
        if config.norm == "frozen":
            return FrozenBatchNorm2d(channels)
        return CrossRankNorm(channels, context)

    net = getattr(torchvision.models, config.name)(weights=None, norm_layer=norm_layer)
    _init_norms(net)
    if config.weights != "random":
        _load(net, _weights(config), config)
    if config.freeze_stem and config.weights != "random":
        for module in (net.conv1, net.bn1):
            module.requires_grad_(False)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    trunk = nn.Sequential(OrderedDict((name, getattr(net, name)) for name in names))
    channels = net.fc.in_features
    return Backbone(trunk, net.layer4, channels // 2, channels)


BUILDERS: dict[str, Callable[[BackboneConfig, NormContext], Backbone]] = {
    "resnet18": _resnet,
    "resnet50": _resnet,
}


def _init_norms(net: nn.Module) -> None:
    """Zero-initialised last norm of each residual block: deep nets start as shallow ones."""
    for module in net.modules():
        for last in ("bn3", "bn2"):
            norm = getattr(module, last, None)
            if isinstance(norm, CrossRankNorm) and hasattr(module, "conv2"):
                nn.init.zeros_(norm.weight)
                break


def _weights(config: BackboneConfig) -> dict[str, Tensor]:
    if config.weights == "imagenet":
        try:
            enum = torchvision.models.get_model_weights(config.name)
            return enum["IMAGENET1K_V1"].get_state_dict(progress=False)
        except OSError as error:
            raise UserError(
                f"ImageNet weights of {config.name} could not be downloaded ({error}). Fetch them where "
                "there is a network and set `backbone.weights` to the file."
            ) from None
    path = Path(config.weights)
    if not path.is_file():
        raise UserError(f"`backbone.weights`: there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler and safetensors each raise kinds of their own
        raise UserError(
            f"`backbone.weights`: {path} cannot be read as tensors alone: {str(error)[:200]}"
        ) from None
    if not isinstance(weights, dict):
        raise UserError(f"`backbone.weights`: {path} holds no tensors by name.")
    return weights


def _load(net: nn.Module, weights: dict[str, Tensor], config: BackboneConfig) -> None:
    """Every tensor that the backbone has must be in the file; canvas statistics start as the scenes'."""
    own = {name for name in net.state_dict() if not name.startswith("fc.")}
    own = {n for n in own if "canvas_running" not in n and not n.endswith("num_batches_tracked")}
    absent = sorted(own - weights.keys())
    if absent:
        raise UserError(
            f"`backbone.weights`: {config.weights} is not a {config.name}: {len(absent)} of {len(own)} "
            f"tensors are absent, {absent[0]} for one."
        )
    try:
        net.load_state_dict({name: weights[name] for name in own}, strict=False)
    except RuntimeError as error:
        raise UserError(f"`backbone.weights`: {config.weights}: {error}") from None
    for module in net.modules():
        if isinstance(module, CrossRankNorm):
            module.canvas_running_mean.copy_(module.running_mean)
            module.canvas_running_var.copy_(module.running_var)
