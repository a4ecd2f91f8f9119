"""L_con: the two views of an unlabelled person agree (paper equation 4; SimSiam).

The paper names the embedding h and the predictor's output z; the stop-gradient is on h.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_loss(h: tuple[Tensor, Tensor], z: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    """Weighted sum over persons of -(cos(sg(h2), z1) + cos(sg(h1), z2)) / 2, in [-1, 1] each.

    h, z: of view 1 and view 2, (P, D). weights: (P,). Sums to the mean over images of the means over
    their persons if a person's weight is 1 / (persons of its image) and the caller divides by images.
    """
    first = F.cosine_similarity(h[1].detach(), z[0], dim=1)
    second = F.cosine_similarity(h[0].detach(), z[1], dim=1)
    return -torch.sum(weights * (first + second)) / 2


def collapse_indicator(h: Tensor) -> tuple[Tensor, int]:
    """Sum and number of 1 - cos over pairs of different persons: mean about 1 healthy, 0 collapsed.

    The mean is D x the variance of the channels of h / |h|, SimSiam's indicator squared, estimated
    without bias from however few persons; sums of several ranks add up. h: (P, D).
    """
    unit = F.normalize(h.detach(), dim=1)
    pairs = len(h) * (len(h) - 1)
    return pairs - (unit.sum(0).square().sum() - unit.square().sum()), pairs
