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


def collapse_indicator(h: Tensor) -> Tensor:
    """sqrt(D) x the mean deviation of the channels of h / |h|: 1 healthy, 0 collapsed. h: (P, D)."""
    if len(h) < 2:
        return h.new_ones(())
    unit = F.normalize(h.detach(), dim=1)
    return unit.std(dim=0).mean() * h.shape[1] ** 0.5
