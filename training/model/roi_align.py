"""RoIAlign as two matrix products: torchvision's numbers to rounding, faster to train through.

Bilinear interpolation is separable, so a box's bins are A_y @ map @ A_x^T with small matrices of weights. Its
gradient is products too, where torchvision's adds atomically: in any order on a GPU, slowly on a CPU. The
price: H * w * C values a box for a while, one map at a time; and a cell that is not finite spoils every box.

Letters: N maps, C channels, H x W cells, R boxes, h x w bins.
Source: He et al., Mask R-CNN, ICCV 2017; torchvision.ops.roi_align with aligned=False.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLES = 2
"""In each direction of a bin."""

Run = tuple[int, int]
"""The number of a map, and how many of the boxes that follow lie on it."""


def roi_align(
    maps: Tensor, boxes: Tensor, runs: Sequence[Run], size: tuple[int, int], stride: int
) -> Tensor:
    """(N, C, H, W) with cells of `stride` pixels, (R, 4) xyxy in pixels -> (R, C, h, w); in memory, channels
    come last.

    runs: on which maps the boxes lie, known on the host, so that nothing waits for a GPU. A box is taken to
    be at least a cell wide and high. Weights are computed in the boxes' dtype and used in the maps'.
    """
    rows, columns = maps.shape[2:]
    edges = boxes / stride
    down = interpolation(edges[:, 1::2], size[0], rows).to(maps.dtype)
    across = interpolation(edges[:, ::2], size[1], columns).to(maps.dtype)
    cells = maps.permute(0, 2, 3, 1)
    counts = [count for _, count in runs]
    aligned = [
        _align(cells[number], vertical, horizontal)
        for (number, count), vertical, horizontal in zip(
            runs, down.split(counts), across.split(counts)
        )
        if count
    ]
    nothing = cells[:0, :1, :1].expand(0, *size, -1)  # without boxes too it belongs to the graph
    return torch.cat([nothing, *aligned]).permute(0, 3, 1, 2)


def _align(cells: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(R, h, w, C) of (H, W, C), (R, h, H) and (R, w, W)."""
    count, bins = across.shape[:2]
    lines = across.flatten(0, 1) @ cells  # (H, R * w, C)
    lines = lines.unflatten(1, (count, bins)).flatten(2).transpose(0, 1)  # (R, H, w * C)
    return (down @ lines).unflatten(2, (bins, cells.shape[2]))


def interpolation(edges: Tensor, bins: int, cells: int) -> Tensor:
    """(R, bins, cells): how much each cell counts in each bin between two edges (R, 2), in cells.

    The mean of SAMPLES points a bin; a point between two cells takes from both, one beyond the first or last
    cell takes that, and one more than a cell outside takes nothing.
    """
    start = edges[:, :1]
    length = (edges[:, 1:] - start).clamp(min=1)
    number = torch.arange(bins * SAMPLES, device=edges.device, dtype=edges.dtype)
    points = start + (number + 0.5) * length / (bins * SAMPLES)
    inside = (points >= -1) & (points <= cells)
    points = points.clamp(0, cells - 1)
    distance = points[..., None] - torch.arange(cells, device=edges.device, dtype=edges.dtype)
    weights = (1 - distance.abs()).clamp(min=0) * inside[..., None]
    return weights.unflatten(1, (bins, SAMPLES)).mean(2)
