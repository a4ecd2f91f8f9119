"""Losses of the region proposals and of the box head (L_rpn and L_dethead of the paper's L_ps).

Each returns sums; the caller divides by the fixed quotas. Short images are padded with weight 0.
Source: torchvision's RPN and RoI heads, NAE for the binary classification.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RPN_BETA = 1 / 9
ROI_BETA = 1.0


def classification_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of binary cross-entropy; all three of one shape."""
    return F.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="sum")


def box_loss(
    deltas: Tensor, target_deltas: Tensor, labels: Tensor, weights: Tensor, beta: float
) -> Tensor:
    """Sum of smooth L1 over the foreground's four offsets; deltas (..., 4), labels (...)."""
    each = F.smooth_l1_loss(deltas, target_deltas, beta=beta, reduction="none").sum(-1)
    return torch.sum(each * weights * labels)
