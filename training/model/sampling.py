"""Draws inside a step as integer hashes: neither ranks nor the order of candidates change them."""

import torch
from torch import Tensor

BITS = 40
"""Of a hash that are used as a draw, so that sums with small class offsets stay in int64."""


def draw(seed: int, *columns: Tensor | int) -> Tensor:
    """Draws in [0, 2**BITS), one for each row of the broadcast int64 columns."""
    value = torch.as_tensor(seed, dtype=torch.int64)
    for column in columns:
        value = value.to(_device(column), non_blocking=True)
        value = _mix(value ^ torch.as_tensor(column, dtype=torch.int64))
    return value & ((1 << BITS) - 1)


def box_columns(boxes: Tensor) -> tuple[Tensor, ...]:
    """Integer columns of boxes (..., 4), in sixteenths of a pixel."""
    return (boxes * 16).round().to(torch.int64).unbind(-1)


def balanced_sample(labels: Tensor, draws: Tensor, quota: int) -> tuple[Tensor, Tensor]:
    """Picks `quota` of the candidates of each image, at most half of them foreground.

    labels: (N, A), 1 foreground, 0 background, -1 neither. draws: (N, A).
    Returns the picked indices (N, quota) and their weights (N, quota): 1, or 0 where there were too few.
    """
    if labels.shape[1] < quota:
        missing = quota - labels.shape[1]
        labels = torch.nn.functional.pad(labels, (0, missing), value=-1)
        draws = torch.nn.functional.pad(draws, (0, missing))
    foreground = labels == 1
    unused = 1 << (BITS + 2)
    order = torch.where(foreground, draws, unused).argsort(dim=1, stable=True)
    place = order.argsort(dim=1, stable=True)
    chosen = foreground & (place < quota // 2)
    rank = torch.where(chosen, draws, unused)
    rank = torch.where(labels == 0, draws + (1 << BITS), rank)
    rank, index = rank.topk(quota, dim=1, largest=False)
    return index, (rank < unused).to(torch.float32)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64; int64 wraps around on overflow."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _device(column: Tensor | int) -> torch.device:
    return column.device if isinstance(column, Tensor) else torch.device("cpu")
