"""The person-search model at test time: who is in a scene, and how they look.

As NAE: proposals go through the RoI heads once; that gives each its score, its refined box and the embedding
of the proposal. Norms use the running statistics of scenes.
Letters: N images, R boxes of one image, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import nms

from pipeline.config import Config
from pipeline.errors import UserError
from training.model.detector import ROI_BOX_WEIGHTS, clip
from training.model.norm_aware import unit
from training.model.person_search import PersonSearch

SMALLEST_SIDE = 0.01
"""Pixels: a box can be clipped to nothing."""


class InferenceConfig(Config):
    proposals_before_nms: int = Field(default=6000, gt=0)
    proposals: int = Field(default=300, gt=0)
    """Of an image, that the heads look at; no more than in training."""
    nms_iou: float = Field(default=0.4, gt=0, le=1)
    min_score: float = Field(default=0.01, ge=0, le=1)
    """Detections from here up count for detection AP."""
    detections: int = Field(default=300, gt=0)
    """Of an image, at most."""


@dataclass(frozen=True)
class Found:
    """The people in one image, the most confident first; on the CPU."""

    boxes: Tensor
    """(R, 4) xyxy in pixels of the model's input."""
    scores: Tensor
    """(R,) probability of a person."""
    embeddings: Tensor
    """(R, D) of length 1."""
    asked: Tensor
    """(Q, D) of length 1, of the boxes that were asked for."""


class Finder:
    """A model in evaluation mode, as a function of pixels."""

    def __init__(self, model: PersonSearch, config: InferenceConfig) -> None:
        self.model, self.config = model.eval(), config
        self._coder = BoxCoder(ROI_BOX_WEIGHTS)
        trained = model.config.detector
        self._number = (
            min(config.proposals_before_nms, trained.proposals_before_nms),
            min(config.proposals, trained.proposals),
        )

    @property
    def device(self) -> torch.device:
        return self.model.mean.device

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, size: Tensor, asked: Sequence[Tensor]) -> list[Found]:
        """(N, H, W, 3) uint8 RGB of which (N, 2) height and width are no padding; in each, boxes (Q, 4) to
        embed as they are. Raises UserError if the model computes what is not finite.
        """
        model = self.model
        pixels, size = pixels.to(self.device), size.to(self.device)
        with model.norms.using("scenes"):
            maps = model.backbone(model.normalise(pixels))
            proposals, real = model.rpn.propose(maps, size, self._number)
            number = real.sum(1).tolist()
            boxes = torch.cat([proposals[real], *(a.to(proposals) for a in asked)])
            runs = [*enumerate(number), *enumerate(len(one) for one in asked)]
            features = model.roi_features(maps, boxes, runs)
            people = features.rows(slice(sum(number)))
            logits = model.classifier(people.embedding, people.pooled)
            deltas = model.box_regressor(people.pooled)
        embeddings = unit(features.embedding)
        if not (logits.isfinite().all() and embeddings.isfinite().all()):
            raise UserError(
                "the model computes values that are not finite: these weights have diverged, or are damaged."
            )
        refined = self._coder.decode_single(deltas, proposals[real])
        refined = clip(refined[:, None], size[real.nonzero()[:, 0]])[:, 0]
        found = embeddings[: sum(number)]
        parts = zip(refined.split(number), logits.sigmoid().split(number), found.split(number))
        wanted = embeddings[sum(number) :].split([len(one) for one in asked])
        return [self._found(*part, one) for part, one in zip(parts, wanted)]

    def _found(self, boxes: Tensor, scores: Tensor, embeddings: Tensor, asked: Tensor) -> Found:
        config = self.config
        large = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_SIDE).all(1)
        kept = ((scores >= config.min_score) & large).nonzero()[:, 0]
        kept = kept[nms(boxes[kept], scores[kept], config.nms_iou)[: config.detections]]
        return Found(boxes[kept].cpu(), scores[kept].cpu(), embeddings[kept].cpu(), asked.cpu())
