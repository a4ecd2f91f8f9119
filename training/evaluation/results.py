"""From what a model found in a set's images to the numbers of its protocols, and to who was found where."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.evaluation.benchmarks import Benchmark
from training.evaluation.detection import DetectionResult, detection_result, match
from training.evaluation.detections import EvaluationConfig, Gathered, QueryBoxes, known_boxes
from training.evaluation.found import Detections, Grouped, Scored, starts
from training.evaluation.protocols import (
    Asked,
    Images,
    People,
    are_ignored,
    ask,
    named_keys,
)
from training.evaluation.search import TOP, Search, SearchResult

ACROSS_CAMERAS = ", across cameras"
ANNOTATED_ROW = "  annotated boxes"
"""Papers: GT boxes."""


@dataclass(frozen=True)
class Searched:
    """A protocol and its outcome."""

    name: str
    asked: Asked
    search: Search
    result: SearchResult
    annotated: SearchResult
    """With annotated boxes in place of detections: what re-identification alone reaches."""
    unreadable: tuple[str, ...]
    """Queries whose image could not be read: nothing is found for them."""

    @property
    def without_match(self) -> list[str]:
        return [self.asked.names[query] for query in np.flatnonzero(~self.result.counted)]

    def summary(self) -> dict[str, Any]:
        result = self.result
        return {
            **_ranked(result),
            "recall": _number(result.recall),
            "queries": int(result.counted.sum()),
            "places": int(result.places.sum()),
            "queries_without_match": self.without_match,
            "queries_unreadable": list(self.unreadable),
            "own_image_in_gallery": self.asked.own_listed,
            "places_from": "annotations" if self.asked.as_annotated else "protocol",
            "annotated_boxes": _ranked(self.annotated),
        }

    def table(self) -> pa.Table:
        """A row a query."""
        result = self.result
        return pa.table(
            {
                "query": pa.array(self.asked.names, pa.string()),
                "ap": result.ap,
                "rank": result.rank,
                "found": result.found,
                "places": result.places,
            }
        )


@dataclass(frozen=True)
class Outcome:
    images: Images
    people: People
    found: Scored
    """Without those that the benchmark ignores."""
    searched: Detections
    """Those of them that are searched."""
    protocols: tuple[Searched, ...]
    problems: dict[str, str]

    @cached_property
    def detection(self) -> dict[str, DetectionResult]:
        """Of everybody, of those with an identity, and of everybody by the detections that are searched."""
        groups: dict[str, tuple[Scored, Grouped]] = {
            "all": (self.found, self.people),
            "labelled": (self.found, self.people.labelled()),
            "searched": (self.searched, self.people),
        }
        return {
            name: detection_result(found, people, match(found, people))
            for name, (found, people) in groups.items()
        }

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "images": {
                "read": len(self.images.keys) - len(self.problems),
                "unreadable": self._unreadable(),
            },
            "detection": {
                name: {
                    "recall": _number(one.recall),
                    # of detections above a threshold, or of some of the people, AP says nothing
                    **({"ap": _number(one.ap)} if name == "all" else {}),
                    "people": one.people,
                    "detections": one.detections,
                }
                for name, one in self.detection.items()
            },
            "search": {one.name: one.summary() for one in self.protocols},
        }

    def _unreadable(self) -> list[dict[str, Any]]:
        """Each with whether it is known who is there."""
        number = self.images.number
        return [
            {
                "key": key,
                "reason": self.problems[key],
                "annotated": self.images.annotations[number[key]] is not None,
            }
            for key in sorted(self.problems)
        ]


def outcome(
    gathered: Gathered,
    protocols: Mapping[str, pa.Table],
    queries: QueryBoxes,
    benchmark: Benchmark,
    config: EvaluationConfig,
    quarantined: Mapping[str, str],
    across_cameras: bool = False,
) -> Outcome:
    """`across_cameras`: each protocol a second time, without the images of the query's camera.

    `queries`: those that `gathered.known` has the embeddings of. `quarantined`: by key, why an image is not
    in the set.
    """
    named = named_keys(protocols.values()) | quarantined.keys()
    lost = sorted(named - set(gathered.keys))
    images = Images((*gathered.keys, *lost), (*gathered.annotations, *[None] * len(lost)))
    people = People.annotated(images, benchmark)
    found = gathered.found.with_empty(len(lost))
    counted = ~are_ignored(found, people, images, benchmark)
    searched = gathered.detections.with_empty(len(lost)).where(counted[gathered.searched])
    annotated = _as_detections(people, gathered)
    results = []
    for name, table in protocols.items():
        for across in (False, True) if across_cameras else (False,):
            asked = ask(table, images, people, benchmark, across)
            embeddings, unreadable = _query_embeddings(asked, images, gathered, queries)
            wanted = asked.with_embeddings(embeddings)
            search = Search(searched, wanted, config.weigh)
            alone = Search(annotated, wanted, config.weigh).result()
            title = name + ACROSS_CAMERAS if across else name
            results.append(Searched(title, asked, search, search.result(), alone, unreadable))
    missing = {key: _why_missing(quarantined.get(key)) for key in lost}
    problems = gathered.problems | missing
    return Outcome(images, people, found.where(counted), searched, tuple(results), problems)


def _why_missing(reason: str | None) -> str:
    if reason is None:
        return "named by a protocol, and not in the shard set"
    return f"quarantined when the shards were written: {reason}"


def _query_embeddings(
    asked: Asked, images: Images, gathered: Gathered, queries: QueryBoxes
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """(Q, D), and the names of the queries that have none."""
    width = gathered.detections.embeddings.shape[1]
    embeddings = np.zeros((len(asked.names), width), np.float32)
    unreadable = []
    for query, (image, box) in enumerate(zip(asked.image.tolist(), asked.boxes)):
        annotation = images.annotations[image]
        if annotation is None or not len(gathered.known[image]):
            unreadable.append(asked.names[query])
        else:
            place = known_boxes(annotation, queries).index(box)
            embeddings[query] = gathered.known[image][place]
    return embeddings, tuple(unreadable)


def _as_detections(people: People, gathered: Gathered) -> Detections:
    """Everybody annotated as if surely found where they are; nobody in an image that could not be read."""
    counts = np.diff(people.first)
    known = [one[:count] for one, count in zip(gathered.known, counts)]
    embeddings = np.concatenate([gathered.detections.embeddings[:0], *known])
    readable = np.zeros(len(counts), bool)
    readable[: len(known)] = [len(one) > 0 for one in known]
    seen = readable[people.image()]
    scores = np.ones(len(embeddings), np.float32)
    return Detections(starts(seen)[people.first], people.boxes[seen], scores, embeddings)


def _ranked(result: SearchResult) -> dict[str, float | None]:
    return {"mAP": _number(result.mean_ap), **{f"top{k}": _number(result.top(k)) for k in TOP}}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def console_table(summary: Mapping[str, Any]) -> str:
    """Of `Outcome.summary`, in percent."""
    header = ["protocol", "queries", "mAP", *(f"top-{k}" for k in TOP), "found"]
    ranked = ("mAP", *(f"top{k}" for k in TOP))
    rows = []
    for name, one in summary["search"].items():
        found = [percent(one[key]) for key in (*ranked, "recall")]
        alone = [percent(one["annotated_boxes"][key]) for key in ranked]
        rows += [[name, f"{one['queries']:,}", *found], [ANNOTATED_ROW, "", *alone, ""]]
    detection = [
        f"detection, {name}: recall {percent(one['recall'])}"
        + (f", AP {percent(one['ap'])}" if "ap" in one else "")
        + f" of {one['people']:,} people, {one['detections']:,} detections"
        for name, one in summary["detection"].items()
    ]
    return "\n".join([*_aligned([header, *rows]), *detection])


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        row[0].ljust(widths[0]) + "".join(f"  {c.rjust(w)}" for c, w in zip(row[1:], widths[1:]))
        for row in rows
    ]
