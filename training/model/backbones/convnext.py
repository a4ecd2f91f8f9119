"""ConvNeXt-T (Liu et al., CVPR 2022), torchvision's: layer norms, so all ranks agree without a word."""

from collections import OrderedDict

import torchvision
from torch import nn

from training.model.backbones.common import (
    Backbone,
    BackboneConfig,
    NormLayer,
    PadToStride,
    without_random_depth,
)

LAST_STAGE = 6
"""From here on `features` is the step to stride 32 and what follows."""


def convnext(config: BackboneConfig, norm: NormLayer) -> Backbone:
    net = getattr(torchvision.models, config.name)(weights=None)
    net.classifier = nn.Identity()
    without_random_depth(net)
    trunk = OrderedDict(pad=PadToStride(), features=net.features[:LAST_STAGE])
    last = OrderedDict(features=net.features[LAST_STAGE:])
    return Backbone(nn.Sequential(trunk), nn.Sequential(last), 384, 768, (net.features[0],), net)
