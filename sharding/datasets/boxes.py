"""What the adapters of scenes share: boxes without area, and how many boxes of which kind there are."""

from collections.abc import Iterable, Sequence

from pydantic import JsonValue

from pipeline.annotation import Box
from sharding.datasets.base import SourceSample

DROPPED = "dropped_boxes"
"""Member of a sample's `extra` that keeps, verbatim, the boxes that cannot be persons."""


def has_area(box: Box) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def keep_dropped(dropped: list[JsonValue]) -> dict[str, JsonValue]:
    return {DROPPED: dropped} if dropped else {}


def count_boxes(samples: Iterable[SourceSample]) -> dict[str, int]:
    persons = ignored = dropped = 0
    for sample in samples:
        regions = sum(1 for person in sample.persons if person.ignore)
        ignored += regions
        persons += len(sample.persons) - regions
        left_out = sample.extra.get(DROPPED, [])
        dropped += len(left_out) if isinstance(left_out, list) else 0
    return {
        "persons": persons,
        "ignore regions": ignored,
        "kept boxes": persons + ignored,
        "dropped boxes": dropped,
    }


def count_people(samples: Sequence[SourceSample]) -> dict[str, int]:
    """Boxes as `count_boxes` counts them, and who of them is known."""
    known = [p.identity for s in samples for p in s.persons if p.identity is not None]
    return {
        **count_boxes(samples),
        "labelled persons": len(known),
        "identities": len(set(known)),
    }
