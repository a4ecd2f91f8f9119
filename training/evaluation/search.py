"""How well people are found again: average precision and top-k of each query.

The protocol of CUHK-SYSU, which PRW and PoseTrack21 took over. In a gallery image that shows the person,
the most similar of the detections that overlap them enough is right; all other detections in the gallery
are wrong. AP is that of all detections ranked by similarity, times the share of the images with the
person in which it was found. A query is in the top k if a right one is among the k most similar.

Ties: equal similarities count as one step in AP, and in the top k wrong ones come first. So no number
here depends on the order of images, detections or queries.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.found import Detections
from training.evaluation.overlap import Boxes, iou
from training.evaluation.precision import at_least, summed_precision

TOP = (1, 5, 10)
QUERIES_AT_ONCE = 64
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Queries:
    embeddings: NDArray[np.float32]
    """(Q, D) of length 1; zeros where the query's image could not be read: nothing is found for it."""
    gallery: Callable[[int], Rows]
    """Of query q, the images to search; one that is named twice is searched twice."""
    query: Rows
    """(T,) ascending: whom each place below is of."""
    image: Rows
    """(T,) an image of that query's gallery that shows the person ..."""
    boxes: Boxes
    """(T, 4) ... and where."""


@dataclass(frozen=True)
class SearchResult:
    """(Q,) each."""

    ap: NDArray[np.float64]
    rank: Rows
    """Place of the first right detection, from 1; 0 where there is none."""
    found: Rows
    """Places at which a detection is right."""
    places: Rows
    """At which the person is. A query without any is no part of the means."""

    @property
    def counted(self) -> NDArray[np.bool_]:
        return self.places > 0

    @property
    def mean_ap(self) -> float:
        return float(self.ap[self.counted].mean()) if self.counted.any() else float("nan")

    def top(self, k: int) -> float:
        """Share of the queries that are in the top k."""
        inside = (self.rank > 0) & (self.rank <= k)
        return float(inside[self.counted].mean()) if self.counted.any() else float("nan")

    @property
    def recall(self) -> float:
        """Share of all places that have a right detection: no ranking could give more."""
        return (
            int(self.found.sum()) / int(self.places.sum()) if self.counted.any() else float("nan")
        )


@dataclass(frozen=True)
class Answer:
    """A detection, ranked."""

    row: int
    """Of the detections."""
    similarity: float
    right: bool


class Search:
    """Ranks detections for queries; `weigh` multiplies similarities by the detections' scores (CWS)."""

    def __init__(self, detections: Detections, queries: Queries, weigh: bool) -> None:
        self._detections, self._queries = detections, queries
        # Products in float64, rounded to float32: equal embeddings tie, in whatever order they are added.
        factor = detections.scores[:, None].astype(np.float64) if weigh else 1.0
        self._weighted = detections.embeddings * factor
        self._place, self._hit = _overlapping(detections, queries)

    def result(self) -> SearchResult:
        number = len(self._queries.embeddings)
        places = np.bincount(self._queries.query, minlength=number)
        ap, rank = np.zeros(number), np.zeros(number, np.int64)
        found = np.zeros(number, np.int64)
        known = self._queries.embeddings.any(1)
        for query, similarity in self._similarities(np.flatnonzero((places > 0) & known)):
            right = similarity[self._right(query, similarity)]
            found[query] = len(right)
            if len(right):
                gallery = similarity[self._gallery(query)]
                ap[query] = summed_precision(gallery, right) / places[query]
                best = right.max(keepdims=True)
                rank[query] = 1 + (at_least(gallery, best) - at_least(right, best))[0]
        return SearchResult(ap, rank, found, places)

    def best(self, query: int, count: int) -> list[Answer]:
        """The most similar detections in a query's gallery, right or wrong."""
        ((_, similarity),) = self._similarities(np.array([query]))
        right = self._right(query, similarity)
        rows = self._gallery(query)
        is_right = np.isin(rows, right)
        order = np.lexsort((rows, is_right, -similarity[rows]))[:count]
        return [Answer(int(rows[i]), float(similarity[rows[i]]), bool(is_right[i])) for i in order]

    def _gallery(self, query: int) -> Rows:
        return self._detections.rows(self._queries.gallery(query))

    def _similarities(self, queries: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Of each query, those of all detections."""
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            some = queries[start : start + QUERIES_AT_ONCE]
            asked = self._queries.embeddings[some].astype(np.float64)
            block = (asked @ self._weighted.T).astype(np.float32)
            yield from zip(some.tolist(), block)

    def _right(self, query: int, similarity: NDArray[np.float32]) -> Rows:
        """The right detection at each of a query's places that has one."""
        first, last = np.searchsorted(self._queries.query, [query, query + 1])
        low, high = np.searchsorted(self._place, [first, last])
        place, hit = self._place[low:high], self._hit[low:high]
        order = np.lexsort((-similarity[hit], place))
        _, best = np.unique(place[order], return_index=True)
        return hit[order[best]]


def _overlapping(detections: Detections, queries: Queries) -> tuple[Rows, Rows]:
    """Places, ascending, and detections there that overlap the person enough."""
    place = np.repeat(np.arange(len(queries.image)), detections.count(queries.image))
    row = detections.rows(queries.image)
    width, height = (queries.boxes[:, 2:] - queries.boxes[:, :2]).T
    # Small people are hard to box: so many pixels off are forgiven.
    least = np.minimum(0.5, width * height / ((width + 10) * (height + 10)))
    enough = iou(detections.boxes[row], queries.boxes[place]) >= least[place]
    return place[enough], row[enough]
