"""The benchmarks' numbers: equal to the protocol written out in loops, on random cases full of ties."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from training.evaluation.detection import detection_result, match
from training.evaluation.found import Detections, Grouped, starts
from training.evaluation.overlap import iou, polygon_iou
from training.evaluation.search import TOP, Queries, Search, SearchResult

DIRECTIONS = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
Box = tuple[float, ...]


@dataclass
class World:
    """A benchmark in lists: what a model found in each image, and what is asked."""

    found: list[list[tuple[Box, float, np.ndarray]]]
    people: list[list[Box]]
    asked: list[np.ndarray]
    galleries: list[list[int]]
    shown: list[dict[int, Box]]
    """Of each query, by image."""


def a_box(rng: np.random.Generator) -> Box:
    x, y = rng.integers(0, 4, 2) * 5.0
    width, height = rng.integers(1, 5, 2) * 5.0
    return (x, y, x + width, y + height)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, queries = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    found = []
    for _ in range(images):
        several = range(rng.integers(0, 6))
        scores = sorted((rng.choice([0.5, 0.75, 1.0]) for _ in several), reverse=True)
        found.append([(a_box(rng), score, DIRECTIONS[rng.integers(4)]) for score in scores])
    people = [[a_box(rng) for _ in range(rng.integers(0, 4))] for _ in range(images)]
    galleries = [rng.integers(0, images, rng.integers(0, 8)).tolist() for _ in range(queries)]
    shown = [
        {image: a_box(rng) for image in sorted(set(gallery)) if rng.random() < 0.5}
        for gallery in galleries
    ]
    asked = [DIRECTIONS[rng.integers(4)] for _ in range(queries)]
    return World(found, people, asked, galleries, shown)


def detections(world: World) -> Detections:
    every = [one for image in world.found for one in image]
    return Detections(
        first=starts([len(image) for image in world.found]),
        boxes=np.array([box for box, _, _ in every], float).reshape(-1, 4),
        scores=np.array([score for _, score, _ in every], np.float32),
        embeddings=np.array([vector for _, _, vector in every], np.float32).reshape(-1, 2),
    )


def queries(world: World) -> Queries:
    # A gallery that lists an image twice lists the person twice.
    places = [
        (query, image, world.shown[query][image])
        for query, gallery in enumerate(world.galleries)
        for image in gallery
        if image in world.shown[query]
    ]
    return Queries(
        embeddings=np.array(world.asked, np.float32).reshape(-1, 2),
        gallery=lambda query: np.array(world.galleries[query], np.int64),
        query=np.array([query for query, _, _ in places], np.int64),
        image=np.array([image for _, image, _ in places], np.int64),
        boxes=np.array([box for _, _, box in places], float).reshape(-1, 4),
    )


def literal_iou(a: Box, b: Box) -> float:
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def literal_search(world: World, query: int, weigh: bool) -> tuple[float, list[bool], int, int]:
    """AP, in the top k for each k, and found among how many places."""
    truth, score, tp, gt = [], [], 0, 0
    for image in world.galleries[query]:
        box = world.shown[query].get(image)
        gt += box is not None
        similar = [
            np.float32(float(vector @ world.asked[query].astype(float)) * (s if weigh else 1))
            for _, s, vector in world.found[image]
        ]
        labels = [0] * len(similar)
        if box is not None:
            w, h = box[2] - box[0], box[3] - box[1]
            least = min(0.5, w * h / ((w + 10) * (h + 10)))
            for place in sorted(range(len(similar)), key=lambda place: -similar[place]):
                if literal_iou(world.found[image][place][0], box) >= least:
                    labels[place] = 1
                    tp += 1
                    break
        truth += labels
        score += similar
    ap = average_precision_score(truth, score) * tp / gt if tp else 0.0
    ranked = sorted(zip(score, truth), key=lambda pair: (-pair[0], pair[1]))
    return ap, [any(label for _, label in ranked[:k]) for k in TOP], tp, gt


@settings(max_examples=300, deadline=None)
@given(worlds(), st.booleans())
def test_search_is_the_protocol(world: World, weigh: bool) -> None:
    result = Search(detections(world), queries(world), weigh).result()
    expected = [literal_search(world, query, weigh) for query in range(len(world.asked))]
    assert result.places.tolist() == [gt for *_, gt in expected]
    assert result.found.tolist() == [tp for _, _, tp, _ in expected]
    np.testing.assert_allclose(result.ap, [ap for ap, *_ in expected], rtol=1e-12)
    for place, k in enumerate(TOP):
        inside = (result.rank > 0) & (result.rank <= k)
        assert inside.tolist() == [top[place] for _, top, *_ in expected]


@settings(max_examples=100, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_no_number_depends_on_an_order(world: World, random: object) -> None:
    """Ties are everywhere in these worlds."""

    def shuffled(items: list) -> list:
        return random.sample(items, len(items))  # type: ignore[attr-defined]

    other = World(
        [sorted(shuffled(image), key=lambda one: -one[1]) for image in world.found],
        world.people,
        world.asked,
        [shuffled(gallery) for gallery in world.galleries],
        world.shown,
    )
    first, second = (Search(detections(w), queries(w), True).result() for w in (world, other))
    assert first.rank.tolist() == second.rank.tolist()
    np.testing.assert_allclose(first.ap, second.ap, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(worlds(), st.integers(1, 12))
def test_the_best_answers_are_those_that_are_counted(world: World, count: int) -> None:
    search = Search(detections(world), queries(world), True)
    result = search.result()
    for query in range(len(world.asked)):
        answers = search.best(query, count)
        assert [a.similarity for a in answers] == sorted(a.similarity for a in answers)[::-1]
        rank = next((place for place, a in enumerate(answers, 1) if a.right), 0)
        assert rank == (result.rank[query] if result.rank[query] <= count else 0)


def literal_detection(world: World) -> tuple[float, float]:
    """Recall, and AP times recall."""
    truth, score, tp, gt = [], [], 0, 0
    for found, people in zip(world.found, world.people):
        gt += len(people)
        overlaps = [[literal_iou(person, box) for box, _, _ in found] for person in people]
        for d, (_, confidence, _) in enumerate(found):
            column = [row[d] for row in overlaps]
            best = column.index(max(column)) if column else None
            right = (
                best is not None
                and column[best] >= 0.5
                and overlaps[best].index(max(overlaps[best])) == d
            )
            truth.append(right)
            score.append(confidence)
            tp += right
    recall = tp / gt
    return recall, average_precision_score(truth, score) * recall if tp else 0.0


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_detection_is_the_protocol(world: World) -> None:
    found, people = detections(world), Grouped.of([np.array(p) for p in world.people])
    result = detection_result(found, people, match(found, people))
    if not result.people:
        assert np.isnan(result.recall) and np.isnan(result.ap)
        return
    recall, ap = literal_detection(world)
    assert result.recall == recall
    assert result.ap == pytest.approx(ap, rel=1e-12)


def test_a_query_without_a_place_is_no_part_of_the_means() -> None:
    result = SearchResult(
        ap=np.array([0.5, 0.0, 1.0]),
        rank=np.array([2, 0, 1]),
        found=np.array([1, 0, 1]),
        places=np.array([2, 0, 2]),
    )
    assert (result.mean_ap, result.top(1), result.top(5), result.recall) == (0.75, 0.5, 1.0, 0.5)


def test_of_nothing_every_mean_is_nan() -> None:
    none = np.zeros(2, np.int64)
    result = SearchResult(np.zeros(2), none, none, none)
    assert np.isnan([result.mean_ap, result.top(1), result.recall]).all()


def test_equal_embeddings_tie_wherever_they_lie() -> None:
    """A matrix product adds in another order at its edges: not even a bit may come of it."""
    rng = np.random.default_rng(0)
    vector = rng.normal(size=256).astype(np.float32)
    vector /= np.linalg.norm(vector)
    for count in (3, 7, 33, 130):
        same = np.tile(vector, (count, 1))
        boxes = np.tile([0.0, 0.0, 40.0, 80.0], (count, 1))
        found = Detections(np.arange(count + 1), boxes, np.full(count, 0.9, np.float32), same)
        asked = Queries(
            vector[None],
            lambda _, count=count: np.arange(count),
            np.array([0]),
            np.array([0]),
            boxes[:1],
        )
        result = Search(found, asked, True).result()
        assert result.rank.tolist() == [count]
        assert result.ap[0] == 1 / count


def test_a_small_person_may_be_boxed_worse() -> None:
    """20 x 40 pixels ask for an IoU of a half, 8 x 16 for 8 * 16 / (18 * 26) = .27."""
    for size, shift, right in (
        ((20, 40), 6, 1),
        ((20, 40), 8, 0),
        ((8, 16), 4, 1),
        ((8, 16), 6, 0),
    ):
        width, height = size
        person = np.array([[0.0, 0.0, width, height]])
        found = Detections(
            np.array([0, 1]),
            person + np.array([shift, 0, shift, 0]),
            np.ones(1, np.float32),
            DIRECTIONS[:1],
        )
        zero = np.array([0])
        asked = Queries(DIRECTIONS[:1], lambda _: zero, zero, zero, person)  # noqa: B023
        assert Search(found, asked, True).result().found.tolist() == [right]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_polygon_that_is_a_box_overlaps_as_a_box_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = a_box(rng), a_box(rng)
    x1, y1, x2, y2 = other
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    expected = iou(np.array(one), np.array(other))
    assert polygon_iou(one, corners) == pytest.approx(expected, abs=1e-12)
    assert polygon_iou(one, corners[::-1]) == pytest.approx(expected, abs=1e-12)


def test_a_polygon_is_not_its_bounding_box() -> None:
    corner = np.array(
        [[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [9.0, 1.0]]
    )  # an L without its inside
    assert polygon_iou((0, 5, 5, 10), corner) == 0
    triangle = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    assert polygon_iou((0, 0, 10, 10), triangle) == 0.5
    assert polygon_iou((0, 0, 5, 5), triangle) == 0.5
