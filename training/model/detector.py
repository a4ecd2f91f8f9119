"""Region proposals and the fixed quotas of anchors and RoIs that losses are computed on.

Letters: N images of all views, A anchors, R proposals an image, Q sampled, C channels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import nms

from pipeline.batch import Use
from pipeline.config import Config
from training.model.backbones.common import STRIDE
from training.model.norm import Kind
from training.model.sampling import BITS, balanced_sample, box_columns, draw
from training.model.targets import GroundTruth, Matches, match

RPN_BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
ROI_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MIN_PROPOSAL_PX = 1.0
JITTER_PROPOSALS = 32


class Quota(Config):
    """How much of each image of one kind is sampled; fixed, so that denominators are too."""

    anchors: int = Field(ge=2)
    rois: int = Field(ge=2)


class DetectorConfig(Config):
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    """Square roots of the anchors' areas, in pixels."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    rpn_foreground_iou: float = 0.7
    rpn_background_iou: float = 0.3
    nms_iou: float = 0.7
    proposals_before_nms: int = Field(default=12000, gt=0)
    proposals: int = Field(default=2000, gt=0)
    """Kept an image after NMS."""
    roi_foreground_iou: float = 0.5
    roi_background_iou: float = 0.1
    """RoIs from here up to the foreground's IoU are ignored: NAE's .1. SeqNet: .5, none ignored."""
    roi_size: tuple[int, int] = (14, 14)
    """Height and width of RoIAlign's output, before the last stage halves it."""
    scenes: Quota = Quota(anchors=256, rois=128)
    canvases: Quota = Quota(anchors=256, rois=128)
    proposal_source: Literal["rpn", "jitter"] = "rpn"
    """`jitter` draws proposals around the ground truth instead: keeps runs comparable beyond the first
    step, since the RPN's ranking flips on differences of 1e-7."""


@dataclass(frozen=True)
class SampledAnchors:
    logits: Tensor
    """(N, Q)"""
    deltas: Tensor
    """(N, Q, 4)"""
    labels: Tensor
    """(N, Q) 1.0 person, 0.0 background."""
    weights: Tensor
    """(N, Q) 1, or 0 where an image had too few candidates."""
    target_deltas: Tensor
    """(N, Q, 4); meaningful where labels is 1."""


@dataclass(frozen=True)
class SampledRois:
    boxes: Tensor
    """(N, Q, 4) xyxy pixels."""
    labels: Tensor
    weights: Tensor
    target_deltas: Tensor
    row: Tensor
    """(N, Q) row of the matched person in `Images`, -1 for background."""
    use: Tensor
    """(N, Q) the matched person's `Use` in this view."""


class RegionProposals(nn.Module):
    """torchvision's RPN head and anchors, with keyed sampling and fixed quotas."""

    def __init__(self, config: DetectorConfig, channels: int, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.anchors = AnchorGenerator((config.anchor_sizes,), (config.anchor_ratios,))
        self.head = RPNHead(channels, self.anchors.num_anchors_per_location()[0])
        self.coder = BoxCoder(RPN_BOX_WEIGHTS)

    def forward(
        self, maps: Tensor, truth: GroundTruth, kind: Kind
    ) -> tuple[SampledAnchors, Tensor, Tensor]:
        """Sampled anchors for the losses; proposals (N, R, 4) and which of them are real (N, R)."""
        logits, deltas = self._predict(maps)
        anchors = self._anchors(maps[:1].to(deltas.dtype))
        sampled = self._sample(logits, deltas, anchors, truth, kind)
        with torch.no_grad():
            if self.config.proposal_source == "jitter":
                proposals, real = jittered_truth(truth, self.seed)
                return sampled, proposals.to(deltas.dtype), real
            number = (self.config.proposals_before_nms, self.config.proposals)
            return sampled, *self._propose(logits, deltas, anchors, truth.size, number)

    @torch.no_grad()
    def propose(self, maps: Tensor, size: Tensor, number: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """At test time: proposals (N, R, 4), the best first, and which of them are real (N, R).

        `size`: (N, 2) valid height and width; `number`: of proposals before and after NMS.
        """
        logits, deltas = self._predict(maps)
        anchors = self._anchors(maps[:1].to(deltas.dtype))
        return self._propose(logits, deltas, anchors, size, number)

    def _predict(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, A) and deltas (N, A, 4) in the anchors' order, fp32 or wider."""
        (logits,), (deltas,) = self.head([maps])
        n, a, h, w = logits.shape
        logits = logits.permute(0, 2, 3, 1).reshape(n, h * w * a)
        deltas = deltas.view(n, a, 4, h, w).permute(0, 3, 4, 1, 2).reshape(n, h * w * a, 4)
        if logits.dtype in (torch.bfloat16, torch.float16):
            return logits.float(), deltas.float()
        return logits, deltas

    def _anchors(self, maps: Tensor) -> Tensor:
        """(A, 4) of one map, a STRIDE apart as RoIAlign's cells: torchvision divides a size by it."""
        size = (maps.shape[-2] * STRIDE, maps.shape[-1] * STRIDE)
        image = maps.new_empty(()).expand(1, 1, *size)
        return self.anchors(ImageList(image, [size]), [maps])[0]

    def _sample(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, truth: GroundTruth, kind: Kind
    ) -> SampledAnchors:
        config = self.config
        with torch.no_grad():
            found = match(
                anchors,
                truth,
                config.rpn_foreground_iou,
                config.rpn_background_iou,
                keep_best=True,
            )
            labels = found.labels.masked_fill(_centre_in_padding(anchors, truth), -1)
            number = torch.arange(len(anchors), device=anchors.device)
            draws = draw(self.seed, truth.position[:, None], truth.view[:, None], number)
            index, weights = balanced_sample(labels, draws, getattr(config, kind).anchors)
            index = index.clamp(max=len(anchors) - 1)
            labels = labels.gather(1, index).clamp(min=0).to(logits.dtype)
            target = _target_deltas(
                self.coder, anchors[index], truth, found.person.gather(1, index), labels
            )
        picked = deltas.gather(1, index[..., None].expand(-1, -1, 4))
        return SampledAnchors(
            logits.gather(1, index), picked, labels, weights.to(logits.dtype), target
        )

    def _propose(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        size: Tensor,
        number: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        before_nms, most = number
        k = min(before_nms, logits.shape[1])
        scores, index = logits.detach().topk(k, dim=1)
        deltas = deltas.detach().gather(1, index[..., None].expand(-1, -1, 4))
        boxes = self.coder.decode_single(deltas.reshape(-1, 4), anchors[index].reshape(-1, 4))
        boxes = clip(boxes.view(*index.shape, 4), size)
        proposals = boxes.new_zeros((len(boxes), most, 4))
        real = torch.zeros(proposals.shape[:2], dtype=torch.bool, device=boxes.device)
        large = (boxes[..., 2:] - boxes[..., :2] >= MIN_PROPOSAL_PX).all(-1)
        # the small ones come last, so they suppress nothing and no image has a shape of its own
        scores = scores.masked_fill(~large, -torch.inf)
        for i in range(len(boxes)):  # all images as one would compare all pairs of boxes
            kept = nms(boxes[i], scores[i], self.config.nms_iou)[:most]
            proposals[i, : len(kept)] = boxes[i, kept]
            real[i, : len(kept)] = large[i, kept]
        return proposals * real[..., None], real


class RoiSampler:
    """Draws the RoIs of each image that the heads are trained on."""

    def __init__(self, config: DetectorConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.coder = BoxCoder(ROI_BOX_WEIGHTS)

    @torch.no_grad()
    def __call__(
        self, proposals: Tensor, real: Tensor, truth: GroundTruth, kind: Kind
    ) -> SampledRois:
        """Samples from the proposals and, as torchvision does, the ground-truth boxes themselves."""
        boxes = torch.cat([proposals, truth.boxes.to(proposals.dtype)], dim=1)
        real = torch.cat([real, truth.use >= Use.DETECT], dim=1)
        found = match(boxes, truth, self.config.roi_foreground_iou, self.config.roi_background_iou)
        labels = found.labels.masked_fill(~real, -1)
        draws = draw(self.seed, truth.position[:, None], truth.view[:, None], *box_columns(boxes))
        index, weights = balanced_sample(labels, draws, getattr(self.config, kind).rois)
        index = index.clamp(max=boxes.shape[1] - 1)
        return self._sampled(boxes, index, weights, Matches(labels, found.person), truth)

    def _sampled(
        self, boxes: Tensor, index: Tensor, weights: Tensor, found: Matches, truth: GroundTruth
    ) -> SampledRois:
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        labels = found.labels.gather(1, index).clamp(min=0)
        person = found.person.gather(1, index)
        foreground = (labels == 1) & (weights > 0)
        return SampledRois(
            boxes,
            labels.to(boxes.dtype),
            weights.to(boxes.dtype),
            _target_deltas(self.coder, boxes, truth, person, labels),
            row=torch.where(foreground, truth.row.gather(1, person), -1),
            use=torch.where(foreground, truth.use.gather(1, person), int(Use.ABSENT)),
        )


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (N, R, 4) clipped to each image's valid (height, width)."""
    height, width = size[:, None, 0].to(boxes.dtype), size[:, None, 1].to(boxes.dtype)
    limits = torch.stack([width, height, width, height], dim=-1)
    return torch.minimum(boxes.clamp(min=0), limits)


def jittered_truth(truth: GroundTruth, seed: int) -> tuple[Tensor, Tensor]:
    """JITTER_PROPOSALS boxes an image: its persons moved and scaled by keyed draws of up to a third."""
    number = torch.arange(JITTER_PROPOSALS, device=truth.use.device)
    is_person = truth.use >= Use.DETECT
    count = is_person.sum(1, keepdim=True)
    nth = number[None] % count.clamp(min=1)
    slot = is_person.to(torch.int64).argsort(dim=1, descending=True, stable=True).gather(1, nth)
    boxes = truth.boxes.gather(1, slot[..., None].expand(-1, -1, 4)).double()
    size = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    key = (truth.position[:, None, None], truth.view[:, None, None], number[None, :, None])
    side = torch.arange(4, device=number.device)
    noise = draw(seed, *key, side).double() / (1 << BITS) - 0.5
    boxes = clip(boxes + noise * size * (2 / 3), truth.size)
    real = (count > 0) & ((boxes[..., 2:] - boxes[..., :2]) >= MIN_PROPOSAL_PX).all(-1)
    return boxes, real


def _centre_in_padding(anchors: Tensor, truth: GroundTruth) -> Tensor:
    """(N, A): anchors there would learn the letterbox, not the picture."""
    x, y = (anchors[:, :2] + anchors[:, 2:]).unbind(1)
    return (x / 2 >= truth.size[:, 1:]) | (y / 2 >= truth.size[:, :1])


def _target_deltas(
    coder: BoxCoder, boxes: Tensor, truth: GroundTruth, person: Tensor, labels: Tensor
) -> Tensor:
    """(N, Q, 4) offsets from `boxes` to their persons; zeros where labels is not 1."""
    target = truth.boxes.gather(1, person[..., None].expand(-1, -1, 4)).to(boxes.dtype)
    is_person = (labels == 1)[..., None]
    unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    source = torch.where(is_person, boxes, unit).reshape(-1, 4)
    target = torch.where(is_person, target, unit).reshape(-1, 4)
    return coder.encode_single(target, source).view_as(boxes)
