"""How well people are found, whoever they are: recall and average precision of detections."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.found import Grouped, Scored
from training.evaluation.overlap import iou
from training.evaluation.precision import summed_precision

MATCH_IOU = 0.5


@dataclass(frozen=True)
class DetectionResult:
    recall: float
    """Share of the people that were found."""
    ap: float
    """Average precision, times the recall."""
    people: int
    detections: int


def detection_result(
    detections: Scored, people: Grouped, right: NDArray[np.bool_]
) -> DetectionResult:
    """`right`: what `match` says of `detections`. NaN where there is nobody to be found."""
    number = len(people.boxes)
    total = summed_precision(detections.scores, detections.scores[right])
    return DetectionResult(
        recall=int(right.sum()) / number if number else float("nan"),
        ap=total / number if number else float("nan"),
        people=number,
        detections=len(right),
    )


def match(detections: Scored, people: Grouped) -> NDArray[np.bool_]:
    """(N,) which detections are a person: each the best of the other, with an IoU of MATCH_IOU or more.

    The best of a detection is the person that overlaps it most, the best of a person the detection that
    overlaps them most; of equals, the one listed first.
    """
    right = np.zeros(len(detections.boxes), bool)
    for image in np.flatnonzero((np.diff(detections.first) > 0) & (np.diff(people.first) > 0)):
        mine = slice(*detections.first[image : image + 2])
        theirs = slice(*people.first[image : image + 2])
        overlap = iou(detections.boxes[mine, None], people.boxes[None, theirs])
        person = overlap.argmax(1)
        mutual = overlap.argmax(0)[person] == np.arange(len(overlap))
        right[mine] = mutual & (overlap.max(1) >= MATCH_IOU)
    return right
