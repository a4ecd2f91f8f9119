"""The person-search model that is pre-trained: NAE on torchvision's parts.

Letters: N images of all views (view 1's first), P persons, Q RoIs sampled an image, M MATCH boxes,
D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.batch import Images, Use
from pipeline.config import Config
from training.model.backbone import build_backbone, freeze
from training.model.backbones.common import STRIDE, BackboneConfig
from training.model.detector import (
    DetectorConfig,
    RegionProposals,
    RoiSampler,
    SampledAnchors,
    SampledRois,
)
from training.model.norm import Kind, NormContext
from training.model.norm_aware import (
    BoxRegressor,
    EmbeddingHead,
    HeadsConfig,
    LinearClassifier,
    NormAwareClassifier,
)
from training.model.roi_align import Run, roi_align
from training.model.targets import GroundTruth

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PersonSearchConfig(Config):
    backbone: BackboneConfig = BackboneConfig()
    detector: DetectorConfig = DetectorConfig()
    heads: HeadsConfig = HeadsConfig()


@dataclass(frozen=True)
class RoiFeatures:
    """What the heads see of a set of boxes."""

    maps: Tensor
    """(R, C4, h, w) RoIAlign's output."""
    pooled: Tensor
    """(R, C5) last stage, max-pooled."""
    embedding: Tensor
    """(R, D) before L2 normalisation."""

    def rows(self, index: slice) -> "RoiFeatures":
        return RoiFeatures(self.maps[index], self.pooled[index], self.embedding[index])


@dataclass(frozen=True)
class SearchOutput:
    """Everything that the losses need, of all scenes or of all canvases of a rank."""

    maps: Tensor
    """(N, C4, H/16, W/16)"""
    anchors: SampledAnchors
    proposals: Tensor
    """(N, R, 4)"""
    real: Tensor
    """(N, R) which of them are proposals, not padding."""
    rois: SampledRois
    roi_features: RoiFeatures
    """Of the sampled RoIs, (N * Q, ...)."""
    roi_logits: Tensor
    """(N, Q)"""
    roi_deltas: Tensor
    """(N, Q, 4)"""
    match_features: RoiFeatures
    """Of the ground-truth boxes that are MATCH, (M, ...), view 1's first, each in person order."""
    match_row: Tensor
    """(M,) row of the person in `Images`."""
    match_view: Tensor
    """(M,) 0 or 1."""


class PersonSearch(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, config: PersonSearchConfig, seed: int, load_weights: bool = True) -> None:
        """load_weights: the backbone's first ones; False where a checkpoint brings them."""
        super().__init__()
        self.config = config
        self.norms = NormContext()
        backbone, self.first_weights = build_backbone(config.backbone, self.norms, load_weights)
        channels = (backbone.trunk_channels, backbone.head_channels)
        self.backbone = backbone.trunk
        self.head = nn.ModuleDict({"layer4": backbone.last_stage})
        self._stem = backbone.stem
        self.rpn = RegionProposals(config.detector, channels[0], seed)
        self.sample_rois = RoiSampler(config.detector, seed)
        self.embedding_head = EmbeddingHead(channels, config.heads, self.norms)
        self.box_regressor = BoxRegressor(channels[1], config.heads, self.norms)
        self.classifier = (
            NormAwareClassifier(self.norms)
            if config.heads.classifier == "norm_aware"
            else LinearClassifier(channels[1])
        )
        self.trunk_channels, self.head_channels = channels
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD) * 255, persistent=False)

    def freeze_stem(self) -> None:
        """Does what `backbone.freeze_stem` says where another run brings what `backbone.weights` does not."""
        if self.config.backbone.freeze_stem:
            freeze(self._stem)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB -> (N, 3, H, W), ImageNet's mean and deviation."""
        normal = ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)
        device = pixels.device.type
        if torch.is_autocast_enabled(device):  # what the first convolution would make of it
            return normal.to(torch.get_autocast_dtype(device))
        return normal

    def forward(self, images: Images, kind: Kind) -> SearchOutput:
        """All views of scenes or canvases through the whole model, as one batch."""
        truth = GroundTruth.of(images)
        pixels = self.normalise(torch.cat([view.pixels for view in images.views]))
        with self.norms.using(kind):
            maps = self.backbone(pixels)
        anchors, proposals, real = self.rpn(maps, truth, kind)
        rois = self.sample_rois(proposals, real, truth, kind)
        match_view, match_row, match_boxes, per_image = _match_boxes(images)

        n, q = rois.labels.shape
        boxes = torch.cat([rois.boxes.reshape(-1, 4), match_boxes.to(rois.boxes.dtype)])
        weights = torch.cat([rois.weights.reshape(-1), rois.weights.new_ones(len(match_row))])
        runs = [*((image, q) for image in range(n)), *enumerate(per_image)]
        with self.norms.using(kind, weights):
            features = self.roi_features(maps, boxes, runs)
        sampled, matched = features.rows(slice(n * q)), features.rows(slice(n * q, None))
        exact = torch.autocast(maps.device.type, enabled=False)
        with exact, self.norms.using(kind, weights[: n * q]):
            logits = self.classifier(sampled.embedding, sampled.pooled)
            deltas = self.box_regressor(sampled.pooled)
        return SearchOutput(
            maps,
            anchors,
            proposals,
            real,
            rois,
            sampled,
            logits.view(n, q),
            deltas.view(n, q, 4),
            matched,
            match_row,
            match_view,
        )

    def roi_features(self, maps: Tensor, boxes: Tensor, runs: Sequence[Run]) -> RoiFeatures:
        """Features of boxes (R, 4), of which the maps lie in `runs`."""
        with torch.autocast(maps.device.type, enabled=False):
            res4 = roi_align(maps, boxes, runs, self.config.detector.roi_size, STRIDE)
        pooled = self.head["layer4"](res4).amax((2, 3)).to(boxes.dtype)
        with torch.autocast(maps.device.type, enabled=False):
            embedding = self.embedding_head(res4.amax((2, 3)).to(boxes.dtype), pooled)
        return RoiFeatures(res4, pooled, embedding)


def _match_boxes(images: Images) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """View, row and box of every person in each view that it may be matched in; how many an image."""
    boxes, persons = torch.stack([view.boxes for view in images.views]), images.persons()
    found = (persons.use == Use.MATCH).nonzero().T.contiguous()
    image = found[0] * len(images.keys) + persons.image[found[1]]
    per_image = torch.bincount(image, minlength=images.shown)
    view, row = found.to(boxes.device, non_blocking=True)
    return view, row, boxes[view, row], per_image.tolist()
