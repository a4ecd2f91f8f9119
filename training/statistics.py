"""What a step says about itself beside its losses; docs/training.md says how each is read.

A statistic is a sum and a count, which are added over micro-steps, steps and ranks before they are
divided. Nothing here waits for the device.

Letters: N images of all views, P persons, R proposals an image, M domains.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.ops import box_iou

from pipeline.batch import Images, Use
from training.losses.domain import Told
from training.model.norm import Kind
from training.model.person_search import SearchOutput

RECALL_IOU = 0.5
GRADIENT_PARTS = {
    "trunk": ("search.backbone.",),
    "last_stage": ("search.head.",),
    "rpn": ("search.rpn.",),
    "heads": ("search.embedding_head.", "search.box_regressor.", "search.classifier."),
    "predictor": ("predictor.",),
    "alignment": ("alignment.",),
}
"""Parts of the model, whose gradients are watched apart: how their parameters' names begin."""


@dataclass
class Parts:
    """What the two kinds of images contribute to a micro-step, summed."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """Losses."""
    counts: dict[str, Tensor] = field(default_factory=dict)
    """Statistics: (2,) float64, sum and count."""
    labelled_rois: Tensor | int = 0
    """Of this rank, seen by OIM."""

    def add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def count(self, name: str, value: Tensor, number: Tensor | int) -> None:
        value = value.detach().double()
        count = number.double() if isinstance(number, Tensor) else torch.full_like(value, number)
        pair = torch.stack([value, count])
        self.counts[name] = self.counts[name] + pair if name in self.counts else pair


def count_persons(parts: Parts, images: Images, kind: Kind) -> None:
    """In a view of an image: all boxes with the regions to ignore, DETECT or better, MATCH."""
    for name, least in (("boxes", Use.IGNORE), ("detect", Use.DETECT), ("match", Use.MATCH)):
        parts.count(f"persons_{kind}/{name}", (images.use >= least).sum(), images.shown)


def count_proposals(parts: Parts, out: SearchOutput, images: Images, kind: Kind) -> None:
    """Proposals of an image, and how many of the persons to be detected one of them covers."""
    parts.count(f"proposals_{kind}", out.real.sum(), len(out.real))
    for number, view in enumerate(images.views):
        image = images.image + number * len(images.keys)
        person = view.use >= Use.DETECT
        found = covered(view.boxes, image, out.proposals, out.real) & person
        parts.count(f"proposal_recall_{kind}", found.sum(), person.sum())


@torch.no_grad()
def covered(boxes: Tensor, image: Tensor, proposals: Tensor, real: Tensor) -> Tensor:
    """(P,) whether boxes (P, 4) of images (P,) overlap a real one of proposals (N, R, 4), real (N, R)."""
    own = proposals[image]
    iou = box_iou(boxes[:, None].to(own.dtype), own)[:, 0]
    return ((iou >= RECALL_IOU) & real[image]).any(1)


def count_domains(parts: Parts, task: str, told: Told, names: Sequence[str]) -> None:
    """How often an alignment module named the domain: over all of them, and of each."""
    for stem, pairs in (
        (f"domain_{task}_accuracy", told.instances),
        (f"domain_{task}_image_accuracy", told.images),
    ):
        parts.count(stem, *pairs.sum(0))
        for name, pair in zip(names, pairs, strict=True):
            parts.count(f"{stem}/{name}", *pair)


def ratios(pairs: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Means of sums and counts; and what always naming the commonest domain would score."""
    found = {name: total / count if count else math.nan for name, (total, count) in pairs.items()}
    for stem in [name for name in pairs if name.endswith("_accuracy")]:
        counts = [count for name, (_, count) in pairs.items() if name.startswith(f"{stem}/")]
        if sum(counts):
            found[stem.replace("_accuracy", "_chance")] = max(counts) / sum(counts)
    return found
