"""RoIAlign's two products are torchvision's RoIAlign, forward and backward."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.model.roi_align import Run, roi_align

STRIDE = 16


def theirs(maps: Tensor, boxes: Tensor, runs: list[Run], size: tuple[int, int]) -> Tensor:
    number = torch.tensor([number for number, count in runs for _ in range(count)]).to(boxes)
    rois = torch.cat([number[:, None], boxes], 1)
    return torchvision.ops.roi_align(maps, rois, size, 1 / STRIDE, sampling_ratio=2)


@given(
    seed=st.integers(0, 10**6),
    cells=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_forward_and_backward_are_torchvisions(
    seed: int, cells: tuple[int, int], size: tuple[int, int], counts: list[int]
) -> None:
    """Also of boxes that reach outside, that are points, and of maps without boxes."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, *cells, generator=generator, dtype=torch.float64, requires_grad=True)
    extent = torch.tensor([cells[1], cells[0]]) * STRIDE * 1.6
    corners = torch.rand(sum(counts), 2, 2, generator=generator, dtype=torch.float64) * extent - 20
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes[::4, 2:] = boxes[::4, :2]
    runs = [(number % 2, count) for number, count in enumerate(counts)]
    ours, expected = roi_align(maps, boxes, runs, size, STRIDE), theirs(maps, boxes, runs, size)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ours, maps, upstream)
    (meant,) = torch.autograd.grad(expected, maps, upstream)
    torch.testing.assert_close(gradient, meant, rtol=0, atol=1e-11)


def test_a_bin_is_the_mean_of_its_four_points() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)  # 4 y + x
    box = torch.tensor([[0.5, 0.5, 2.5, 1.5]]) * STRIDE
    found = roi_align(maps, box, [(0, 1)], (1, 2), STRIDE)
    assert found.flatten().tolist() == pytest.approx([4 * 1.0 + 1.0, 4 * 1.0 + 2.0])


def test_without_maps_there_are_no_rows_but_a_graph() -> None:
    maps = torch.zeros(0, 3, 4, 5, requires_grad=True)
    found = roi_align(maps, torch.zeros(0, 4), [], (2, 3), STRIDE)
    assert found.shape == (0, 3, 2, 3)
    assert found.requires_grad


def test_half_precision_maps_move_no_box() -> None:
    """Weights are rounded as the maps are, to 8 bits; where a box lies is computed in fp32."""
    maps = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 1, 8, 64)  # the column's number
    box = torch.tensor([[900.3, 20.0, 910.1, 90.0]])
    exact = roi_align(maps, box, [(0, 1)], (2, 4), STRIDE)
    half = roi_align(maps.bfloat16(), box, [(0, 1)], (2, 4), STRIDE)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=1e-2, atol=0)
