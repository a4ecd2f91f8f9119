"""Protocols: what is asked of a shard set is what the evaluators of the benchmarks read in the releases."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat
from searchset import TEST_SPLITS, write_search_set

from pipeline.annotation import Annotation, Person
from pipeline.errors import UserError
from pipeline.samples import SampleReader
from pipeline.shards import ShardSet
from training.evaluation.benchmarks import are_in_regions, benchmark_of, polygon
from training.evaluation.detections import EvaluationConfig, Gathered
from training.evaluation.found import Detections, starts
from training.evaluation.overlap import polygon_iou
from training.evaluation.protocols import (
    Asked,
    Images,
    People,
    are_ignored,
    ask,
    named_keys,
    query_boxes,
)
from training.evaluation.results import outcome

Places = list[tuple[str, list[float]]]
"""Gallery images, and where the person is there."""
Query = tuple[str, list[str], Places]
"""Its image, the images searched, and the places."""


@pytest.fixture(scope="module")
def sets(
    miniature: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ShardSet]:
    root = tmp_path_factory.mktemp("sets")
    for name in TEST_SPLITS:
        write_search_set(miniature[0], name, root / name)
    return {name: ShardSet(str(root / name)) for name in TEST_SPLITS}


def images_of(shard_set: ShardSet) -> Images:
    reader = SampleReader(shard_set)
    places = [(shard, slot) for shard, slots in enumerate(reader.slots) for slot in range(slots)]
    annotations = [reader.annotation(0, *place) for place in places]
    return Images(tuple(one.key for one in annotations), tuple(annotations))


def asked(shard_set: ShardSet, protocol: str, across_cameras: bool = False) -> list[Query]:
    """What is asked, with names in place of numbers."""
    images = images_of(shard_set)
    benchmark = benchmark_of(shard_set.manifest.dataset)
    people = People.annotated(images, benchmark)
    found = ask(shard_set.protocol(protocol), images, people, benchmark, across_cameras)
    return [in_words(found, images, query) for query in range(len(found.names))]


def in_words(found: Asked, images: Images, query: int) -> Query:
    at = np.flatnonzero(found.query == query)
    names = [images.keys[image] for image in found.place_image[at]]
    places = list(zip(names, found.place_boxes[at].tolist()))
    gallery = [images.keys[image] for image in found.galleries[query]]
    return images.keys[found.image[query]], gallery, places


@pytest.mark.parametrize("across_cameras", [False, True])
def test_prw(
    sets: dict[str, ShardSet], miniature: tuple[Path, object], across_cameras: bool
) -> None:
    """The first box of the person in every other frame; all cameras, or all but the query's."""
    root = miniature[0] / "prw" / "PRW-v16.04.20"
    frames = [cell[0][0] for cell in loadmat(root / "frame_test.mat")["img_index_test"]]
    boxes: dict[str, list[tuple[int, list[float]]]] = {}
    for frame in frames:
        found = loadmat(root / "annotations" / f"{frame}.jpg.mat")
        rows = next(found[n] for n in ("box_new", "anno_file", "anno_previous") if n in found)
        read = np.clip(rows[:, 1:], 0, None)
        read[:, 2:] += read[:, :2]
        ids = rows[:, 0].astype(int).tolist()
        boxes[frame] = list(zip(ids, read.astype(np.int32).tolist()))
    expected: list[Query] = []
    for line in (root / "query_info.txt").read_text().splitlines():
        person, *_, own = line.split()
        gallery = [f for f in frames if f != own and not (across_cameras and f[1] == own[1])]
        places = [
            (f"prw/test/{frame}", next(box for name, box in boxes[frame] if name == int(person)))
            for frame in gallery
            if any(name == int(person) for name, _ in boxes[frame])
        ]
        expected.append((f"prw/test/{own}", [f"prw/test/{f}" for f in gallery], places))
    found_queries = asked(sets["prw"], "PRW", across_cameras)
    assert len(found_queries) == len(expected) > 10
    for (key, gallery, places), (own, others, there) in zip(found_queries, expected):
        assert (key, sorted(gallery), sorted(places)) == (own, sorted(others), sorted(there))


@pytest.mark.parametrize("protocol", ["TestG50", "TestG4000"])
def test_cuhk_sysu(
    sets: dict[str, ShardSet], miniature: tuple[Path, object], protocol: str
) -> None:
    """The file's galleries, but for the query's own image; boxes counted from 0 instead of 1."""
    path = miniature[0] / "cuhk_sysu/annotation/test/train_test" / f"{protocol}.mat"
    if not path.exists():
        path = next((miniature[0] / "cuhk_sysu").rglob(f"{protocol}.mat"))
    rows = loadmat(path)[protocol].squeeze()
    own_listed = 0
    found_queries = asked(sets["cuhk_sysu"], protocol)
    assert len(found_queries) == len(rows) > 3
    for row, (key, gallery, places) in zip(rows, found_queries):
        own = cuhk_key(row["Query"]["imname"][0, 0][0])
        listed, there = [], []
        for item in row["Gallery"].squeeze():
            name = cuhk_key(item[0][0])
            own_listed += name == own
            if name != own:
                listed.append(name)
                if item[1].size:
                    x, y, w, h = item[1][0].astype(np.int32).tolist()
                    there.append((name, [x - 1, y - 1, x - 1 + w, y - 1 + h]))
        assert (key, gallery, places) == (own, listed, there)
    assert own_listed == 1  # the miniature's, like two of the release


def cuhk_key(name: str) -> str:
    return f"cuhk_sysu/test/{name.removesuffix('.jpg')}"


def test_posetrack21(sets: dict[str, ShardSet], miniature: tuple[Path, object]) -> None:
    root = miniature[0] / "posetrack21"
    folder = next(root.rglob("posetrack_person_search"))
    gallery, queries = (json.loads((folder / f"{n}.json").read_text()) for n in ("val", "query"))
    name = {image["id"]: image["file_name"] for image in gallery["images"]}
    labelled = {i["id"] for i in gallery["images"] if i["has_labeled_person"]}
    boxes: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for person in gallery["annotations"]:
        x, y, w, h = person["bbox"]
        if person["image_id"] in labelled:
            read = np.array([x, y, x + w, y + h]).astype(np.int32).tolist()
            boxes[person["person_id"]].setdefault(person["image_id"], read)
    asked_in = {image["id"]: image["file_name"] for image in queries["images"]}
    expected = []
    for query in queries["annotations"]:
        own = asked_in[query["image_id"]]
        there = [
            (posetrack_key(name[image]), box)
            for image, box in boxes[query["person_id"]].items()
            if name[image] != own
        ]
        expected.append((posetrack_key(own), there))
    found = asked(sets["posetrack21"], "PoseTrack21")
    assert sorted((key, sorted(places)) for key, _, places in found) == sorted(
        (key, sorted(places)) for key, places in expected
    )
    keys = set(images_of(sets["posetrack21"]).keys)
    assert all(set(gallery) == keys - {key} for key, gallery, _ in found)


def posetrack_key(file_name: str) -> str:
    return f"posetrack21/{file_name.removeprefix('images/').removesuffix('.jpg')}"


def test_queries_of_all_protocols_are_embedded_once(sets: dict[str, ShardSet]) -> None:
    cuhk = sets["cuhk_sysu"]
    tables = [cuhk.protocol(name) for name in cuhk.manifest.protocols]
    boxes = query_boxes(tables)
    assert sum(map(len, boxes.values())) == len(tables[0])
    assert named_keys(tables) <= set(images_of(cuhk).keys)
    assert list(boxes) == sorted(boxes)


def test_a_protocol_may_name_what_the_set_has_not(sets: dict[str, ShardSet]) -> None:
    """An image that was quarantined: nobody is found there, and who is there stays to be found."""
    cuhk = sets["cuhk_sysu"]
    images = images_of(cuhk)
    table = cuhk.protocol("TestG50")
    lost = table["positives"].to_pylist()[1][0]["key"]
    there = [n for n, key in enumerate(images.keys) if key != lost]
    fewer = Images(
        (*(images.keys[n] for n in there), lost), (*(images.annotations[n] for n in there), None)
    )
    benchmark = benchmark_of("cuhk_sysu")
    before = ask(table, images, People.annotated(images, benchmark), benchmark)
    after = ask(table, fewer, People.annotated(fewer, benchmark), benchmark)
    assert np.array_equal(np.bincount(before.query), np.bincount(after.query))


def test_an_unknown_protocol_is_named_beside_those_there_are(sets: dict[str, ShardSet]) -> None:
    with pytest.raises(UserError, match="has no protocol `TestG60`; it has TestG50, TestG100"):
        sets["cuhk_sysu"].protocol("TestG60")


def test_across_cameras_is_prws_alone(sets: dict[str, ShardSet]) -> None:
    with pytest.raises(UserError, match="defined for PRW alone"):
        asked(sets["cuhk_sysu"], "TestG50", across_cameras=True)


def a_frame(persons: tuple[Person, ...]) -> Images:
    record: dict[str, Any] = {"version": 1, "dataset": "posetrack21", "domain": "posetrack21"}
    record |= {"split": "val", "task": "search", "width": 200, "height": 100, "source": "a"}
    return Images(
        ("posetrack21/val/a",), (Annotation(key="posetrack21/val/a", persons=persons, **record),)
    )


def boxes_found(*boxes: tuple[float, ...]) -> Detections:
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
    embeddings = np.ones((len(boxes), 1), np.float32)
    return Detections(starts([len(boxes)]), np.array(boxes, float), scores, embeddings)


@pytest.mark.parametrize(("dataset", "kept"), [("posetrack21", [0, 1]), ("prw", [0, 1, 2])])
def test_detections_in_regions_to_ignore(dataset: str, kept: list[int]) -> None:
    """Those that are a person stay, and those beside the polygon, however large its bounding box."""
    triangle = Person(box=(0, 0, 100, 100), ignore=True, extra={"x": [0, 100, 0], "y": [0, 0, 100]})
    images = a_frame((Person(box=(0, 0, 40, 50), identity="search:1"), triangle))
    found = boxes_found((0, 0, 40, 50), (60, 60, 100, 100), (5, 0, 45, 50))
    benchmark = benchmark_of(dataset)
    people = People.annotated(images, benchmark)
    left = found.where(~are_ignored(found, people, images, benchmark))
    assert left.boxes.tolist() == found.boxes[kept].tolist()
    assert left.first.tolist() == [0, len(kept)]


def test_whom_a_region_hides_is_not_searched() -> None:
    """Though fewer are searched than are found."""
    hidden = Person(box=(100, 0, 200, 100), ignore=True)
    images = a_frame((Person(box=(0, 0, 40, 50), identity="search:1"), hidden))
    person, nobody, inside = (0, 0, 40, 50), (60, 0, 90, 50), (110, 0, 190, 90)
    found = boxes_found(person, nobody, inside, person)
    found = replace(found, first=starts([2, 2]))
    searched = np.array([True, False, True, False])
    gathered = Gathered(
        ("posetrack21/val/a", "posetrack21/val/b"),
        images.annotations * 2,
        problems={},
        found=found,
        searched=searched,
        detections=found.where(searched),
        known=(np.ones((1, 1), np.float32),) * 2,
    )
    benchmark = benchmark_of("posetrack21")
    result = outcome(gathered, {}, {}, benchmark, EvaluationConfig(), {})
    assert result.found.boxes.tolist() == found.boxes[[0, 1, 3]].tolist()
    assert result.searched.boxes.tolist() == found.boxes[:1].tolist()
    assert result.searched.first.tolist() == [0, 1, 1]


SIDES = st.integers(0, 12)
BOXES = st.tuples(SIDES, SIDES, st.integers(0, 6), st.integers(0, 6)).map(
    lambda one: (float(one[0]), float(one[1]), float(one[0] + one[2]), float(one[1] + one[3]))
)
OUTLINES = st.none() | st.lists(st.tuples(SIDES, SIDES), max_size=6)
"""Of any shape: crossing themselves, without an area, without a corner."""


def a_region(box: tuple[float, ...], outline: list[tuple[int, int]] | None) -> Person:
    x, y = ([corner[axis] for corner in outline or ()] for axis in (0, 1))
    return Person(box=box, ignore=True, extra={} if outline is None else {"x": x, "y": y})


@settings(max_examples=300, deadline=None)
@given(
    st.lists(BOXES, max_size=6),
    st.lists(st.builds(a_region, BOXES, OUTLINES), max_size=4),
    st.sampled_from([0.01, 0.1, 0.5]),
)
def test_which_detections_lie_in_regions(
    boxes: list[tuple[float, ...]], regions: list[Person], least: float
) -> None:
    """Pair by pair."""
    expected = [any(polygon_iou(b, polygon(r)) > least for r in regions) for b in boxes]
    found = are_in_regions(np.array(boxes).reshape(-1, 4), regions, least)
    assert found.tolist() == expected


def test_only_what_may_overlap_is_compared_with_a_polygon(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[list[float]] = []

    def counted(box: np.ndarray, outline: np.ndarray) -> float:
        compared.append(box.tolist())
        return polygon_iou(box, outline)

    monkeypatch.setattr("training.evaluation.benchmarks.polygon_iou", counted)
    boxes = np.array([(10.0 * n, 0.0, 10.0 * n + 10, 10.0) for n in range(50)])
    regions = [a_region((120, 0, 140, 10), None), a_region((125, 20, 135, 30), None)]
    found = are_in_regions(boxes, [*regions, *regions], 0.1)
    assert np.flatnonzero(found).tolist() == [12, 13]
    assert compared == boxes[12:14].tolist()


def test_people_without_an_identity_are_detected_and_not_asked_for() -> None:
    images = a_frame((Person(box=(0, 0, 9, 9)), Person(box=(1.7, -2, 9, 9), identity="search:1")))
    people = People.annotated(images, benchmark_of("posetrack21"))
    assert people.first.tolist() == [0, 2]
    assert people.labelled().boxes.tolist() == [[1, -2, 9, 9]]
    assert [*people.places()] == ["search:1"]
