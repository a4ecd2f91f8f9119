"""The step as reference code bases write it, with the same parameters, draws and losses.

As NAE's and SeqNet's code on torchvision's parts: a list of images that the model resizes and normalises, a
forward for each view, loops over images for proposals, matching and sampling. The embedding's batch norms
over both views and the losses are ours here too, a few percent of a step. Regions to ignore and padding are
left out: the benchmark's batches have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou, clip_boxes_to_image, nms, remove_small_boxes, roi_align

from pipeline.batch import Images, Use
from training.model.backbones.common import STRIDE
from training.model.detector import (
    JITTER_PROPOSALS,
    MIN_PROPOSAL_PX,
    ROI_BOX_WEIGHTS,
    RPN_BOX_WEIGHTS,
    DetectorConfig,
    SampledAnchors,
    SampledRois,
    jittered_truth,
)
from training.model.norm import Kind
from training.model.person_search import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PersonSearch,
    RoiFeatures,
    SearchOutput,
)
from training.model.sampling import box_columns, draw
from training.model.targets import GroundTruth


def make_plain(search: PersonSearch) -> None:
    """Replaces the forward of `search`; its parameters stay."""
    search.forward = PlainForward(search)  # type: ignore[method-assign, assignment]


class PlainForward:
    """In place of `PersonSearch.forward`. Q RoIs are sampled of each of n images of a view."""

    def __init__(self, search: PersonSearch) -> None:
        self.search = search
        self.config: DetectorConfig = search.config.detector

    def __call__(self, images: Images, kind: Kind) -> SearchOutput:
        first, second = (self._view(images, number, kind) for number in (0, 1))
        anchors, rois = _joined(first.anchors, second.anchors), _joined(first.rois, second.rois)
        count = rois.weights.numel()
        parts = [first.sampled, second.sampled, first.matched, second.matched]
        res4, pooled = (torch.cat(part) for part in zip(*parts))
        row = torch.cat([first.row, second.row])
        weights = torch.cat([rois.weights.reshape(-1), rois.weights.new_ones(len(row))])
        with self.search.norms.using(kind, weights):
            embedding = self.search.embedding_head(res4.amax((2, 3)), pooled)
        features = RoiFeatures(res4, pooled, embedding)
        sampled, matched = features.rows(slice(count)), features.rows(slice(count, None))
        with self.search.norms.using(kind, weights[:count]):
            logits = self.search.classifier(sampled.embedding, sampled.pooled)
            deltas = self.search.box_regressor(sampled.pooled)
        shape = rois.weights.shape
        view = torch.ones_like(row)
        view[: len(first.row)] = 0
        return SearchOutput(
            torch.cat([first.maps, second.maps]),
            anchors,
            torch.cat([first.proposals, second.proposals]),
            torch.cat([first.real, second.real]),
            rois,
            sampled,
            logits.view(shape),
            deltas.view(*shape, 4),
            matched,
            row,
            view,
        )

    def _view(self, images: Images, number: int, kind: Kind) -> "_View":
        view = images.views[number]
        height, width = view.pixels.shape[1:3]
        transform = GeneralizedRCNNTransform(
            min(height, width), max(height, width), IMAGENET_MEAN, IMAGENET_STD
        )
        rows = [torch.where(images.image == i)[0] for i in range(len(images.keys))]
        pictures = [pixels.permute(2, 0, 1) / 255 for pixels in view.pixels]
        pictures, targets = transform(pictures, [{"boxes": view.boxes[r]} for r in rows])
        truths = [
            _Truth(target["boxes"], view.use[r], r, images.position[i], number)
            for i, (target, r) in enumerate(zip(targets, rows))
        ]
        maps = self.search.backbone(pictures.tensors)
        logits, deltas = self.search.rpn._predict(maps)
        anchors = self.search.rpn.anchors(pictures, [maps])
        proposals = self._proposals(logits, deltas, anchors, (height, width))
        if self.config.proposal_source == "jitter":
            jittered, real = jittered_truth(GroundTruth.of(images), self.search.rpn.seed)
            of_view = zip(*(part.chunk(2)[number] for part in (jittered, real)))
            proposals = [boxes[kept].to(deltas.dtype) for boxes, kept in of_view]
        sampled_anchors = [
            self._anchors(*each, getattr(self.config, kind).anchors)
            for each in zip(logits, deltas, anchors, truths)
        ]
        rois = [
            self._rois(*each, getattr(self.config, kind).rois) for each in zip(proposals, truths)
        ]
        matches = [truth.use == Use.MATCH for truth in truths]
        boxes = [
            torch.cat([roi.boxes, truth.boxes[match]])
            for roi, truth, match in zip(rois, truths, matches)
        ]
        size = self.config.roi_size
        res4 = roi_align(maps, boxes, size, 1 / STRIDE, sampling_ratio=2)
        pooled = self.search.head["layer4"](res4).amax((2, 3))
        is_roi = torch.cat(
            [torch.arange(len(b), device=maps.device) < len(r.boxes) for b, r in zip(boxes, rois)]
        )
        return _View(
            maps,
            _stacked(sampled_anchors),
            *self._padded(proposals),
            _stacked(rois),
            (res4[is_roi], pooled[is_roi]),
            (res4[~is_roi], pooled[~is_roi]),
            torch.cat([truth.row[match] for truth, match in zip(truths, matches)]),
        )

    @torch.no_grad()
    def _proposals(
        self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], size: tuple[int, int]
    ) -> list[Tensor]:
        found = []
        for scores, offsets, places in zip(logits, deltas, anchors):
            scores, index = scores.topk(min(self.config.proposals_before_nms, len(scores)))
            boxes = self.search.rpn.coder.decode_single(offsets[index], places[index])
            boxes = clip_boxes_to_image(boxes, size)
            large = remove_small_boxes(boxes, MIN_PROPOSAL_PX)
            boxes, scores = boxes[large], scores[large]
            kept = nms(boxes, scores, self.config.nms_iou)[: self.config.proposals]
            found.append(boxes[kept])
        return found

    def _padded(self, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """For the statistics."""
        most = max(self.config.proposals, JITTER_PROPOSALS)
        boxes = [F.pad(each, (0, 0, 0, most - len(each))) for each in proposals]
        counts = torch.tensor([[len(each)] for each in proposals], device=boxes[0].device)
        return torch.stack(boxes), torch.arange(most, device=counts.device) < counts

    def _anchors(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, truth: "_Truth", quota: int
    ) -> SampledAnchors:
        config = self.config
        bounds = (config.rpn_foreground_iou, config.rpn_background_iou)
        labels, person = _matched(anchors, truth.boxes, bounds, keep_best=True)
        number = torch.arange(len(anchors), device=anchors.device)
        draws = draw(self.search.rpn.seed, truth.position, truth.view, number)
        index, weights = _picked(labels, draws, quota)
        targets = _offsets(RPN_BOX_WEIGHTS, truth.boxes[person[index]], anchors[index])
        return SampledAnchors(
            logits[index], deltas[index], labels[index].clamp(min=0).float(), weights, targets
        )

    @torch.no_grad()
    def _rois(self, proposals: Tensor, truth: "_Truth", quota: int) -> SampledRois:
        config = self.config
        boxes = torch.cat([proposals, truth.boxes])
        bounds = (config.roi_foreground_iou, config.roi_background_iou)
        labels, person = _matched(boxes, truth.boxes, bounds)
        draws = draw(self.search.rpn.seed, truth.position, truth.view, *box_columns(boxes))
        index, weights = _picked(labels, draws, quota)
        labels, person, boxes = labels[index].clamp(min=0), person[index], boxes[index]
        targets = _offsets(ROI_BOX_WEIGHTS, truth.boxes[person], boxes)
        foreground = (labels == 1) & (weights > 0)
        row = torch.where(foreground, truth.row[person], -1)
        use = torch.where(foreground, truth.use[person], int(Use.ABSENT))
        return SampledRois(boxes, labels.float(), weights, targets, row, use)


@dataclass(frozen=True)
class _Truth:
    """Of one image in one view."""

    boxes: Tensor
    use: Tensor
    row: Tensor
    """Of the persons in `Images`."""
    position: Tensor
    view: int


@dataclass(frozen=True)
class _View:
    """What one forward gives."""

    maps: Tensor
    anchors: SampledAnchors
    proposals: Tensor
    real: Tensor
    rois: SampledRois
    sampled: tuple[Tensor, Tensor]
    """RoIAlign's output and the last stage's, of the RoIs."""
    matched: tuple[Tensor, Tensor]
    """Of the persons that may be matched."""
    row: Tensor
    """Of those persons in `Images`."""


Sampled = TypeVar("Sampled", SampledAnchors, SampledRois)


def _stacked(parts: Sequence[Sampled]) -> Sampled:
    names = [field.name for field in fields(parts[0])]
    return type(parts[0])(*(torch.stack([getattr(p, name) for p in parts]) for name in names))


def _joined(first: Sampled, second: Sampled) -> Sampled:
    names = [field.name for field in fields(first)]
    return type(first)(*(torch.cat([getattr(first, n), getattr(second, n)]) for n in names))


@torch.no_grad()
def _matched(
    boxes: Tensor, persons: Tensor, bounds: tuple[float, float], keep_best: bool = False
) -> tuple[Tensor, Tensor]:
    """Labels, 1 person, 0 background, -1 neither; and the person that each box overlaps most."""
    found = Matcher(*bounds, allow_low_quality_matches=keep_best)(box_iou(persons, boxes))
    labels = torch.zeros_like(found)
    labels[found >= 0] = 1
    labels[found == Matcher.BETWEEN_THRESHOLDS] = -1
    return labels, found.clamp(min=0)


def _picked(labels: Tensor, draws: Tensor, quota: int) -> tuple[Tensor, Tensor]:
    """`quota` boxes, at most half of them persons, and their weights: 0 where boxes were too few."""
    persons, background = torch.where(labels == 1)[0], torch.where(labels == 0)[0]
    persons = persons[draws[persons].argsort()][: quota // 2]
    background = background[draws[background].argsort()][: quota - len(persons)]
    index = torch.cat([persons, background])
    weights = torch.zeros(quota, device=labels.device)
    weights[: len(index)] = 1
    return F.pad(index, (0, quota - len(index))), weights


def _offsets(weights: tuple[float, float, float, float], persons: Tensor, boxes: Tensor) -> Tensor:
    return BoxCoder(weights).encode_single(persons, boxes)
