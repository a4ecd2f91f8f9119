"""ShuffleNet v2 (Ma et al., ECCV 2018), torchvision's, up to stage 4: its conv5 belongs to the classifier."""

from collections import OrderedDict

import torchvision
from torch import nn

from training.model.backbones.common import Backbone, BackboneConfig, NormLayer

TRUNK = ("conv1", "maxpool", "stage2", "stage3")


def shufflenet_v2(config: BackboneConfig, norm: NormLayer) -> Backbone:
    net = getattr(torchvision.models, f"shufflenet_v2_x{config.width}".replace(".", "_"))(
        weights=None
    )
    head = net.conv5[0].in_channels
    net.conv5, net.fc = nn.Identity(), nn.Identity()
    _replace_norms(net, norm)
    trunk = nn.Sequential(OrderedDict((name, getattr(net, name)) for name in TRUNK))
    return Backbone(trunk, net.stage4, head // 2, head, (net.conv1,), net)


def _replace_norms(module: nn.Module, norm: NormLayer) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, norm(child.num_features))
        else:
            _replace_norms(child, norm)
