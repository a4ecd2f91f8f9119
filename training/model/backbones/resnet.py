"""ResNet-18 and -50 (He et al., CVPR 2016), torchvision's, with the stride in the 3x3 convolution."""

from collections import OrderedDict

import torchvision
from torch import nn

from training.model.backbones.common import Backbone, BackboneConfig, NormLayer
from training.model.norm import CrossRankNorm

TRUNK = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")


def resnet(config: BackboneConfig, norm: NormLayer) -> Backbone:
    net = getattr(torchvision.models, config.name)(weights=None, norm_layer=norm)
    _start_shallow(net)
    channels = net.fc.in_features
    net.fc = nn.Identity()
    trunk = nn.Sequential(OrderedDict((name, getattr(net, name)) for name in TRUNK))
    return Backbone(trunk, net.layer4, channels // 2, channels, (net.conv1, net.bn1), net)


def _start_shallow(net: nn.Module) -> None:
    """Zero-initialised last norm of each residual block: deep nets start as shallow ones."""
    for module in net.modules():
        for last in ("bn3", "bn2"):
            norm = getattr(module, last, None)
            if isinstance(norm, CrossRankNorm) and hasattr(module, "conv2"):
                nn.init.zeros_(norm.weight)
                break
