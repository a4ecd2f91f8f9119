"""Batch norms whose statistics are those of all ranks' valid rows, of the running kind, or frozen.

`torch.nn.SyncBatchNorm` refuses CPU tensors, one row, and masks; its mathematics are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from training.distributed import all_reduce_sum

Kind = Literal["scenes", "canvases"]


class NormContext:
    """What the norms of one model are looking at: set around each forward of a part of it."""

    def __init__(self) -> None:
        self.kind: Kind = "scenes"
        self.rows: Tensor | None = None

    @contextmanager
    def using(self, kind: Kind, rows: Tensor | None = None) -> Iterator[None]:
        """`rows`: (N,) weights 0 or 1, which of the N inputs count; None = all."""
        previous = self.kind, self.rows
        self.kind, self.rows = kind, rows
        try:
            yield
        finally:
            self.kind, self.rows = previous


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's in one pass, in the dtype of its input: under autocast fp32 would leave it."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class CrossRankNorm(nn.Module):
    """Normalises (N, C) or (N, C, H, W) by the statistics of all ranks' valid rows, in fp32 or wider.

    Statistics for evaluation are tracked on scenes in `running_*`, the names that torchvision loads,
    and on canvases in `canvas_running_*`: flat-filled canvases would shift what a detector relies on.
    """

    running_mean: Tensor
    running_var: Tensor
    canvas_running_mean: Tensor
    canvas_running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, context: NormContext, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.context, self.eps, self.momentum = context, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        for name in ("running", "canvas_running"):
            self.register_buffer(f"{name}_mean", torch.zeros(num_features))
            self.register_buffer(f"{name}_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self._running()
        if not self.training:
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        y, *moments = _Normalise.apply(x, self.weight, self.bias, self._rows(x), self.eps)
        self._track(*moments)
        return y

    def _rows(self, x: Tensor) -> Tensor:
        if self.context.rows is None:
            return x.new_ones(x.shape[0], dtype=self.weight.dtype)
        return self.context.rows

    @torch.no_grad()
    def _track(self, batch_mean: Tensor, batch_var: Tensor, count: Tensor) -> None:
        mean, var = self._running()
        unbiased = batch_var * count / (count - 1).clamp(min=1)
        seen = self.momentum * (count > 0)  # an empty batch says nothing
        mean.lerp_(batch_mean.to(mean.dtype), seen.to(mean.dtype))
        var.lerp_(unbiased.to(var.dtype), seen.to(var.dtype))
        if self.context.kind == "scenes":
            self.num_batches_tracked += 1

    def _running(self) -> tuple[Tensor, Tensor]:
        if self.context.kind == "scenes":
            return self.running_mean, self.running_var
        return self.canvas_running_mean, self.canvas_running_var

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, momentum={self.momentum}"


class ReEstimatedNorm(CrossRankNorm):
    """Normalises by the running statistics, which go on following the data of all ranks.

    A constant to the gradient, as frozen ones are: training computes what evaluation computes, so whoever
    freezes these statistics later has the very network that was trained.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self._track(*_moments(x, self._rows(x)))
        mean, var = self._running()
        scale = self.weight * torch.rsqrt(var + self.eps)
        y = x * _per_channel(scale, x) + _per_channel(self.bias - mean * scale, x)
        return y.to(x.dtype)


class _Normalise(torch.autograd.Function):
    """One all-reduce forward (sum, square sum, count) and one backward (the two gradient sums)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var, count = _moments(x, rows)
        inverse = torch.rsqrt(var + eps)
        scale = inverse * weight
        y = _at_least_fp32(x) * _per_channel(scale, x) + _per_channel(bias - mean * scale, x)
        ctx.save_for_backward(x, weight, rows, mean, inverse, count.clamp(min=1))
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, mean, inverse, count = ctx.saved_tensors
        axes = [d for d in range(x.ndim) if d != 1]
        grad = gradients[0].to(mean.dtype)
        normalised = (x.to(mean.dtype) - _per_channel(mean, x)) * _per_channel(inverse, x)
        grad_bias = grad.sum(axes)
        grad_weight = (grad * normalised).sum(axes)
        # mean and variance of every rank depend on this rank's rows
        total = all_reduce_sum(torch.cat([grad_bias, grad_weight])) / count
        shared = _per_channel(total[: x.shape[1]], x) + normalised * _per_channel(
            total[x.shape[1] :], x
        )
        grad_x = (grad - shared * _per_row(rows, x)) * _per_channel(inverse * weight, x)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None


def _moments(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) over the valid rows of all ranks, and how many values. Collective."""
    wide = _at_least_fp32(x)
    axes = [d for d in range(x.ndim) if d != 1]
    masked = wide * _per_row(rows, x)
    area = x.numel() // max(x.shape[0] * x.shape[1], 1)
    sums = [masked.sum(axes), (masked * wide).sum(axes), (rows.sum() * area).reshape(1)]
    total = all_reduce_sum(torch.cat([s.to(wide.dtype) for s in sums]))
    channels = x.shape[1]
    count = total[-1].clamp(min=1)
    mean = total[:channels] / count
    var = (total[channels:-1] / count - mean * mean).clamp(min=0)
    return mean, var, total[-1]


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
