"""Swin-T (Liu et al., ICCV 2021), torchvision's; channels last inside, so both parts turn their maps.

Windows that reach over a map's edge are padded by torchvision. An RoI of 14 x 14 becomes one window of 7 x 7.
"""

from collections import OrderedDict

import torchvision
from torch import nn
from torchvision.ops import Permute

from training.model.backbones.common import (
    Backbone,
    BackboneConfig,
    NormLayer,
    PadToStride,
    without_random_depth,
)

LAST_STAGE = 6
"""From here on `features` is the step to stride 32 and what follows."""
CHANNELS_FIRST, CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def swin(config: BackboneConfig, norm: NormLayer) -> Backbone:
    net = getattr(torchvision.models, config.name)(weights=None)
    net.head = nn.Identity()
    without_random_depth(net)
    trunk = OrderedDict(
        pad=PadToStride(), features=net.features[:LAST_STAGE], turn=Permute(CHANNELS_FIRST)
    )
    last = OrderedDict(
        turn=Permute(CHANNELS_LAST),
        features=net.features[LAST_STAGE:],
        norm=net.norm,
        turn_back=Permute(CHANNELS_FIRST),
    )
    return Backbone(nn.Sequential(trunk), nn.Sequential(last), 384, 768, (net.features[0],), net)
