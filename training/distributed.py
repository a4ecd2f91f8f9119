"""Collectives over all data-parallel ranks; each is the identity where there is only one.

Collective: every rank must call these the same number of times in the same order.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, without gradient; `tensor` is left as it is."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def all_reduce_max(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total


def any_rank(flags: Sequence[bool | Tensor], device: torch.device) -> list[bool]:
    """Which of the flags are raised on any rank. Waits for the device. Collective."""
    mine = torch.stack([torch.as_tensor(flag, device=device) for flag in flags])
    return [bool(flag) for flag in all_reduce_max(mine.to(torch.uint8)).tolist()]


def same_on_all_ranks(number: int, device: torch.device) -> bool:
    """Whether every rank holds this number, of at most 52 bits."""
    extremes = all_reduce_max(torch.tensor([number, -number], dtype=torch.float64, device=device))
    return extremes.sum().item() == 0


def all_gather_rows(rows: Tensor) -> Tensor:
    """Rows (n_r, ...) of every rank, one below the other in rank order; n_r may differ and be zero."""
    if world_size() == 1:
        return rows.detach()
    count = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in torch.cat(counts).tolist()]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes)])
