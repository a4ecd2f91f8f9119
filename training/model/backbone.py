"""Backbones, split as NAE splits them: a trunk to stride 16 and the last stage, which runs on RoIs.

A new one is a builder in `training/model/backbones/` and a line in the table below.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import nn

from pipeline.errors import UserError
from training.model.backbones import shufflenet_v1_files
from training.model.backbones.common import Backbone, BackboneConfig, NormLayer
from training.model.backbones.convnext import convnext
from training.model.backbones.resnet import resnet
from training.model.backbones.shufflenet_v1 import shufflenet_v1
from training.model.backbones.shufflenet_v2 import shufflenet_v2
from training.model.backbones.swin import swin
from training.model.norm import CrossRankNorm, FrozenNorm, NormContext, ReEstimatedNorm
from training.model.weights import (
    LoadedWeights,
    imagenet_file,
    load_into,
    read_tensors,
    sha256_of,
)

BUILDERS: dict[str, Callable[[BackboneConfig, NormLayer], Backbone]] = {
    "resnet18": resnet,
    "resnet50": resnet,
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "convnext_tiny": convnext,
    "swin_t": swin,
}


def build_backbone(
    config: BackboneConfig, context: NormContext, load: bool = True
) -> tuple[Backbone, LoadedWeights | None]:
    """The backbone with its first weights, and where they are from; None if they are random.

    Without `load` they are random, whatever the settings say, and what is to be frozen is. Raises UserError
    if the weights cannot be had or do not fit.
    """
    backbone = BUILDERS[config.name](config, _norm_layer(config, context))
    if config.weights == "random":
        return backbone, None
    loaded = _load(backbone.net, config) if load else None
    if config.freeze_stem:
        freeze(backbone.stem)
    return backbone, loaded


def freeze(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.requires_grad_(False)


def _norm_layer(config: BackboneConfig, context: NormContext) -> NormLayer:
    def norm(channels: int) -> nn.Module:
        if config.norm == "frozen":
            return FrozenNorm(channels)
        if config.norm == "re_estimated":
            return ReEstimatedNorm(channels, context)
        return CrossRankNorm(channels, context)

    return norm


def _load(net: nn.Module, config: BackboneConfig) -> LoadedWeights:
    path, origin = _source(config)
    weights = read_tensors(path)
    if config.name == "shufflenet_v1":
        weights = shufflenet_v1_files.in_own_layout(weights, config.groups, origin)
    loaded, unused = load_into(net, weights, config.name, f"`backbone.weights`: {origin}")
    return LoadedWeights(origin, sha256_of(path), loaded, unused)


def _source(config: BackboneConfig) -> tuple[Path, str]:
    """File and origin of the weights."""
    if config.weights != "imagenet":
        return Path(config.weights), config.weights
    if config.name == "shufflenet_v1":
        raise UserError(
            "torchvision has no ImageNet weights of shufflenet_v1. Set `backbone.weights` to a file; "
            "docs/method.md says which published ones are read."
        )
    network: str = config.name
    if network == "shufflenet_v2":
        network += f"_x{config.width}".replace(".", "_")
    return imagenet_file(network)
