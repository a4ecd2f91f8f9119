"""L_adv: intra-task alignment modules (IAM) that make domains of one task indistinguishable.

Gradient reversal, an image-level and an instance-level domain classifier, and their consistency,
which is passed un-reversed (paper section 3.3; Chen et al., Domain Adaptive Faster R-CNN, CVPR 2018).

Letters: B images ("image" of the re-ID module = one RoI), R instances, M domains, C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_HIDDEN = 512
INSTANCE_HIDDEN = 1024
ROOT_EPS = 1e-12
"""Inside the root of the consistency's L2 norm, whose gradient is infinite at zero."""


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x; its gradient is multiplied by `scale`: negative reverses it."""
    return _ScaleGradient.apply(x, scale)


@dataclass(frozen=True)
class DomainInput:
    """What one alignment module compares."""

    maps: Tensor
    """(B, C, h, w)"""
    pixels: Tensor
    """(B, h, w) 1 where the map shows image, 0 where padding."""
    image_domain: Tensor
    """(B,) int64"""
    instances: Tensor
    """(R, C')"""
    image: Tensor
    """(R,) image of each instance."""
    weights: Tensor
    """(R,) 1, or 0 for padded instances."""


@dataclass(frozen=True)
class Told:
    """How often a module named the domain: (M, 2) float64, by domain right ones and all."""

    images: Tensor
    """By the mean of the probabilities over an image's pixels."""
    instances: Tensor


class AlignmentModule(nn.Module):
    """Domain classifiers over one task's domains."""

    def __init__(self, channels: tuple[int, int], num_domains: int, pooled: bool = False) -> None:
        """channels: of the maps and of the instances. pooled: a map is classified once, not in each cell."""
        super().__init__()
        self.num_domains, self.pooled = num_domains, pooled
        self.image_head = nn.Sequential(
            nn.Conv2d(channels[0], IMAGE_HIDDEN, 1),
            nn.ReLU(),
            nn.Conv2d(IMAGE_HIDDEN, num_domains, 1),
        )
        self.instance_head = nn.Sequential(
            nn.Linear(channels[1], INSTANCE_HIDDEN),
            nn.ReLU(),
            nn.Linear(INSTANCE_HIDDEN, INSTANCE_HIDDEN),
            nn.ReLU(),
            nn.Linear(INSTANCE_HIDDEN, num_domains),
        )

    def forward(self, x: DomainInput, coefficient: float) -> tuple[dict[str, Tensor], Told]:
        """Sums `image` (over B), `instance`, `consistency` (over R); and what was told right.

        coefficient: lambda of the reversal; the features get the consistency's gradient times +lambda.
        """
        image_logits, instance_logits = self._classify(x, -coefficient)
        image = image_loss(image_logits, x.pixels, x.image_domain)
        domain = x.image_domain[x.image]
        instance = (F.cross_entropy(instance_logits, domain, reduction="none") * x.weights).sum()
        agreeing = self._classify(x, coefficient)
        consistency = consistency_loss(*agreeing, x.pixels, x.image, x.weights)
        sums = {"image": image, "instance": instance, "consistency": consistency}
        return sums, self._told(x, image_logits.detach(), instance_logits.detach())

    def _told(self, x: DomainInput, image_logits: Tensor, instance_logits: Tensor) -> Told:
        images = mean_over_pixels(image_logits.softmax(1), x.pixels)
        each = torch.ones_like(images[:, 0])
        return Told(
            told_by_domain(images, x.image_domain, each),
            told_by_domain(instance_logits, x.image_domain[x.image], x.weights),
        )

    def _classify(self, x: DomainInput, scale: float) -> tuple[Tensor, Tensor]:
        image = self.image_head(scale_gradient(x.maps, scale))
        instance = self.instance_head(scale_gradient(x.instances, scale))
        wide = x.weights.dtype
        image = image.to(wide)
        if self.pooled:  # the last convolution of the mean is the mean of the last convolution
            image = mean_over_pixels(image, x.pixels)[:, :, None, None].expand_as(image)
        return image, instance.to(wide)


def told_by_domain(scores: Tensor, domain: Tensor, weights: Tensor) -> Tensor:
    """(M, 2) float64: of each domain, how many of scores (R, M) are highest there, and how many there are."""
    right = scores.argmax(1) == domain
    member = F.one_hot(domain, scores.shape[1]).double()
    return member.T @ torch.stack([right * weights, weights], dim=1).double()


def mean_over_pixels(values: Tensor, pixels: Tensor) -> Tensor:
    """(B, M): of (B, M, h, w) over each image's valid pixels (B, h, w)."""
    total = (values * pixels[:, None]).sum((2, 3))
    return total / pixels.sum((1, 2)).clamp(min=1)[:, None]


def image_loss(logits: Tensor, pixels: Tensor, domain: Tensor) -> Tensor:
    """Sum over images of the mean over their valid pixels of cross-entropy. logits: (B, M, h, w)."""
    target = domain[:, None, None].expand(-1, *logits.shape[2:])
    each = F.cross_entropy(logits, target, reduction="none") * pixels
    return (each.sum((1, 2)) / pixels.sum((1, 2)).clamp(min=1)).sum()


def consistency_loss(
    image_logits: Tensor, instance_logits: Tensor, pixels: Tensor, image: Tensor, weights: Tensor
) -> Tensor:
    """Sum over instances of |mean over pixels of the image's probabilities - the instance's|_2."""
    mean = mean_over_pixels(image_logits.softmax(1), pixels)
    difference = mean[image] - instance_logits.softmax(1)
    return ((difference.square().sum(1) + ROOT_EPS).sqrt() * weights).sum()
