"""Ground truth of a batch as padded boxes, and the matching of candidate boxes to it.

Letters: N images of all views (view 1's first, then view 2's), P persons, G most persons in an image,
A candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from pipeline.batch import Images, Use

IGNORE_OVERLAP = 0.5
"""A candidate with more than this share of its area in an ignore region is no negative."""
MATCH_CELLS = 1 << 24
"""Candidates x persons compared at a time: bounds memory at 64 MiB a matrix."""


@dataclass(frozen=True)
class GroundTruth:
    boxes: Tensor
    """(N, G, 4) xyxy pixels, zeros where padded."""
    use: Tensor
    """(N, G) values of `Use`, ABSENT where padded."""
    row: Tensor
    """(N, G) row of the person in `Images`, -1 where padded."""
    size: Tensor
    """(N, 2) valid height and width in pixels."""
    position: Tensor
    """(N,) global position of the image."""
    view: Tensor
    """(N,) 0 or 1."""

    @classmethod
    def of(cls, images: Images) -> "GroundTruth":
        num_images, persons = len(images.keys), len(images.image)
        device = images.image.device
        host = images.persons().image
        per_image = torch.bincount(host, minlength=num_images)
        first = per_image.cumsum(0) - per_image
        slot = (torch.arange(persons) - first[host]).to(device, non_blocking=True)
        most = int(per_image.max()) if persons else 0
        shape = (images.shown, max(most, 1))
        boxes = images.views[0].boxes.new_zeros((*shape, 4))
        use = torch.full(shape, int(Use.ABSENT), device=device)
        row = torch.full(shape, -1, device=device)
        for view, content in enumerate(images.views):
            image = images.image + view * num_images
            boxes[image, slot] = content.boxes
            use[image, slot] = content.use
            row[image, slot] = torch.arange(persons, device=device)
        return cls(
            boxes,
            use,
            row,
            size=images.valid,
            position=images.for_views(images.position),
            view=torch.arange(len(images.views), device=device).repeat_interleave(num_images),
        )


@dataclass(frozen=True)
class Matches:
    """What each candidate box stands for."""

    labels: Tensor
    """(N, A) 1 person, 0 background, -1 neither."""
    person: Tensor
    """(N, A) slot in `GroundTruth` of the person that overlaps most; meaningful where labels is 1."""


def match(
    candidates: Tensor,
    truth: GroundTruth,
    foreground_iou: float,
    background_iou: float,
    keep_best: bool = False,
) -> Matches:
    """Matches (N, A, 4) candidates, or (A, 4) shared by all images.

    Foreground: IoU >= foreground_iou with a person and, if `keep_best`, whatever overlaps a person most
    (torchvision's low-quality matches). Background: IoU < background_iou with all persons and not
    mostly inside a region to ignore.
    """
    num_images, num_persons = truth.use.shape
    cells = candidates.shape[-2] * num_persons
    step = max(1, MATCH_CELLS // max(cells, 1))
    parts = [
        _match_images(
            candidates if candidates.ndim == 2 else candidates[i : i + step],
            truth.boxes[i : i + step],
            truth.use[i : i + step],
            (foreground_iou, background_iou),
            keep_best,
        )
        for i in range(0, max(num_images, 1), step)
    ]
    labels, person = zip(*parts)
    return Matches(torch.cat(labels), torch.cat(person))


def _match_images(
    candidates: Tensor,
    boxes: Tensor,
    use: Tensor,
    thresholds: tuple[float, float],
    keep_best: bool,
) -> tuple[Tensor, Tensor]:
    candidates = candidates.expand(len(boxes), -1, -1)
    boxes = boxes.to(candidates.dtype)
    is_person = (use >= Use.DETECT)[:, None]
    iou = torch.where(is_person, box_iou(candidates, boxes), -1.0)
    best, person = iou.max(dim=2)
    labels = torch.full_like(person, -1)
    inside = pairwise_inside(candidates, boxes).masked_fill((use != Use.IGNORE)[:, None], 0)
    is_background = (best < thresholds[1]) & (inside.amax(2) <= IGNORE_OVERLAP)
    labels[is_background] = 0
    labels[best >= thresholds[0]] = 1
    if keep_best:
        top = iou.amax(dim=1, keepdim=True)
        labels[((iou == top) & (top > 0)).any(2)] = 1
    return labels, person


def pairwise_inside(first: Tensor, second: Tensor) -> Tensor:
    """Share of the area of each of (N, A, 4) inside each of (N, G, 4): (N, A, G)."""
    low = torch.maximum(first[:, :, None, :2], second[:, None, :, :2])
    high = torch.minimum(first[:, :, None, 2:], second[:, None, :, 2:])
    area = (first[..., 2:] - first[..., :2]).clamp(min=0).prod(-1)
    return (high - low).clamp(min=0).prod(-1) / area[:, :, None].clamp(min=1e-6)
