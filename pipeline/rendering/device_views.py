"""The device's half of mode `device`: the views of a batch out of bases, in plain torch operations.

The CPU has decoded each image and resized once what its views show of it, its base
(`pipeline.rendering.device_base`); here every pixel of a view is sampled from it bilinearly, coloured by one
matrix and blurred. Each pixel is a sum in one fixed order, so it does not depend on what else is in the
batch, nor on the device: on an H200 they are the CPU's to the bit.

Letters: N images, P persons of these images, H x W the size of a view, M the blur's reach, B bases' sizes.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline.annotation import FILL_RGB


@dataclass(frozen=True)
class Warps:
    """How a view comes out of its base, for each image."""

    across: Tensor
    """(N, 3) float32: column x of the view is column step * x + start of the base, at most last."""
    down: Tensor
    """(N, 3) float32: the same of rows."""
    colour: Tensor
    """(N, 3, 4) float32: a matrix and an offset in grey levels."""
    blur: Tensor
    """(N, 2 M + 1) float32: weights of the neighbours in a row, then in a column."""
    erased: Tensor
    """(P, 4) int64 xyxy, in whole pixels of the view: what is painted over; zeros: nothing."""

    def to(self, device: torch.device | str, non_blocking: bool) -> "Warps":
        tensors = (getattr(self, field.name) for field in fields(self))
        return Warps(*(tensor.to(device, non_blocking=non_blocking) for tensor in tensors))


@dataclass(frozen=True)
class Unrendered:
    """What pixels of views are made from."""

    size: tuple[int, int]
    """H and W."""
    bases: tuple[Tensor, ...]
    """(N, B, B, 3) uint8 RGB, arbitrary beyond what `Warps` reach: one for all views, or one for each."""
    warps: tuple[Warps, ...]

    def to(self, device: torch.device | str, non_blocking: bool) -> "Unrendered":
        bases = tuple(base.to(device, non_blocking=non_blocking) for base in self.bases)
        warps = tuple(warps.to(device, non_blocking) for warps in self.warps)
        return Unrendered(self.size, bases, warps)

    def render(self, view: int, valid: Tensor, image: Tensor) -> Tensor:
        """(N, H, W, 3) uint8. `valid` (N, 2) and `image` (P,) as in `View` and `Images`."""
        base, warps = self.bases[view % len(self.bases)], self.warps[view]
        margin = warps.blur.shape[1] // 2
        height, width = self.size
        rows = _places(warps.down, valid[:, 0], height, margin)
        columns = _places(warps.across, valid[:, 1], width, margin)
        content = _blur(_mix(_sample(base, rows, columns), warps.colour), warps.blur)
        pixels = content.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        hidden = _outside(valid, self.size) | _erased(warps.erased, image, len(valid), self.size)
        fill = torch.tensor(FILL_RGB, dtype=torch.uint8, device=pixels.device)
        return torch.where(hidden[..., None], fill, pixels).contiguous()


def _places(warp: Tensor, content: Tensor, length: int, margin: int) -> Tensor:
    """(N, length + 2 margin): where in the base the pixels of a row or column of the view lie.

    At the edge of the content (N,) it turns back, as the blur's border does.
    """
    last = (content - 1)[:, None]
    pixel = torch.arange(-margin, length + margin, device=warp.device)[None].abs()
    pixel = (last - (last - pixel).abs()).clamp(min=0)
    step, start, end = warp[:, :, None].unbind(1)
    return torch.minimum((pixel * step + start).clamp(min=0), end)


def _sample(base: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, 3, R, C) float32 of (N, B, B, 3) uint8 at rows (N, R) and columns (N, C)."""
    lines = _between(base, rows[:, :, None, None], 1)
    return _between(lines, columns[:, None, :, None], 2).permute(0, 3, 1, 2)


def _between(source: Tensor, places: Tensor, dim: int) -> Tensor:
    """Linear along `dim`; reads nothing behind the last place, where `grid_sample` may by rounding."""
    low, high = (
        torch.take_along_dim(source, place.long(), dim).float()
        for place in (places.floor(), places.ceil())
    )
    return low + (high - low) * (places - places.floor())


def _mix(content: Tensor, colour: Tensor) -> Tensor:
    """Sums of three written out: a matrix product may be rounded otherwise for another batch size."""
    red, green, blue = (channel[:, None] for channel in content.unbind(1))
    by_red, by_green, by_blue, offset = colour[..., None, None].unbind(2)
    return (by_red * red + by_green * green + by_blue * blue + offset).clamp(0, 255)


def _blur(content: Tensor, weights: Tensor) -> Tensor:
    """(N, 3, H + 2 M, W + 2 M) -> (N, 3, H, W)."""
    for dim in (3, 2):
        length = content.shape[dim] - weights.shape[1] + 1
        taps = weights[:, :, None, None, None].unbind(1)
        total = taps[0] * content.narrow(dim, 0, length)
        for shift, tap in enumerate(taps[1:], 1):
            total = total + tap * content.narrow(dim, shift, length)
        content = total
    return content


def _outside(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W): beyond the content."""
    rows, columns = (torch.arange(length, device=valid.device) for length in size)
    return (rows >= valid[:, :1])[:, :, None] | (columns >= valid[:, 1:])[:, None, :]


def _erased(rectangles: Tensor, image: Tensor, images: int, size: tuple[int, int]) -> Tensor:
    """(N, H, W): inside of any rectangle (P, 4) of its image (P,); by corners summed up, in integers."""
    corners = rectangles.new_zeros((images, size[0] + 1, size[1] + 1), dtype=torch.int32)
    x1, y1, x2, y2 = rectangles.unbind(1)
    for x, y, sign in ((x1, y1, 1), (x2, y1, -1), (x1, y2, -1), (x2, y2, 1)):
        change = torch.full_like(x, sign, dtype=torch.int32)
        corners.index_put_((image, y, x), change, accumulate=True)
    return corners.cumsum(1).cumsum(2)[:, :-1, :-1] > 0
