"""ShuffleNet v1 (Zhang et al., CVPR 2018), which the paper names and torchvision does not have.

Names follow torchvision's ResNet: conv1, bn1, stage2 ... stage4, and in each unit conv1, bn1 (grouped
pointwise), conv2, bn2 (depthwise), conv3, bn3 (grouped pointwise).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from training.model.backbones.common import Backbone, BackboneConfig, NormLayer
from training.model.norm import CrossRankNorm

CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Of stage 2 at width 1, by groups (the paper's table 1); each further stage has twice as many."""
STEM = {0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}
"""Of conv1 by width, as in the weights that the paper's authors published."""
STEM_HALF_EIGHT = 16
"""At width 0.5 and 8 groups: 12 would leave a number of channels that 8 does not divide."""
UNITS = {"stage2": 4, "stage3": 8, "stage4": 4}
BOTTLENECK = 4
TRUNK = ("conv1", "bn1", "relu", "maxpool", "stage2", "stage3")


class ShuffleUnit(nn.Module):
    """The paper's figure 2: (b) adds to its input, (c) with stride 2 is concatenated to its mean."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, groups: tuple[int, int], norm: NormLayer
    ) -> None:
        """groups: of the first and of the second pointwise convolution."""
        super().__init__()
        hidden, grown = outputs // BOTTLENECK, outputs - (inputs if stride == 2 else 0)
        self.stride, self.groups = stride, groups[1]
        self.conv1 = nn.Conv2d(inputs, hidden, 1, groups=groups[0], bias=False)
        self.bn1 = norm(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = norm(hidden)
        self.conv3 = nn.Conv2d(hidden, grown, 1, groups=groups[1], bias=False)
        self.bn3 = norm(grown)
        if stride == 1 and isinstance(self.bn3, CrossRankNorm):
            nn.init.zeros_(self.bn3.weight)  # deep nets start as shallow ones

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        if self.stride == 1:
            return F.relu(x + y)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], dim=1))


class ShuffleNetV1(nn.Module):
    """Without its classifier."""

    def __init__(self, width: float, groups: int, norm: NormLayer) -> None:
        super().__init__()
        channels = STEM_HALF_EIGHT if (width, groups) == (0.5, 8) else STEM[width]
        self.conv1 = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        outputs = int(CHANNELS[groups] * width)
        for name, units in UNITS.items():
            # conv1's channels are too few to be grouped
            first = 1 if name == "stage2" else groups
            stage = [ShuffleUnit(channels, outputs, 2, (first, groups), norm)]
            stage += [
                ShuffleUnit(outputs, outputs, 1, (groups, groups), norm) for _ in range(units - 1)
            ]
            setattr(self, name, nn.Sequential(*stage))
            channels, outputs = outputs, 2 * outputs
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, channels, H/32, W/32)."""
        for name in (*TRUNK, "stage4"):
            x = getattr(self, name)(x)
        return x


def shufflenet_v1(config: BackboneConfig, norm: NormLayer) -> Backbone:
    """Raises UserError if the groups do not divide the channels of this width."""
    hidden = CHANNELS[config.groups] * config.width / BOTTLENECK
    if hidden % config.groups:
        raise UserError(
            f"`backbone.groups` {config.groups} do not divide the {hidden:g} channels inside shufflenet_v1's "
            f"units at `backbone.width` {config.width}: choose another pair, 3 and 8 groups fit all widths."
        )
    net = ShuffleNetV1(config.width, config.groups, norm)
    trunk = nn.Sequential(OrderedDict((name, getattr(net, name)) for name in TRUNK))
    stem = (net.conv1, net.bn1)
    last_stage = net.get_submodule("stage4")
    return Backbone(trunk, last_stage, net.channels // 2, net.channels, stem, net)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """(N, groups x n, H, W): channel i of group g moves to place i x groups + g."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
