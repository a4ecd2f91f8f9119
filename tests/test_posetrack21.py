"""PoseTrack21: parsing rules, quiet traps and bad input on hand-made releases."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from releases import JPEG, list_samples, read, write_file

from pipeline.errors import UserError
from pipeline.shards import PROTOCOL_SCHEMA
from sharding.datasets.boxes import DROPPED
from sharding.miniature import TruthImage

Entry = dict[str, Any]


def frame(video: int, number: int, split: str = "val", **changes: Any) -> Entry:
    return {
        "id": int(f"1{video:06d}{number:04d}"),
        "vid_id": f"{video:06d}",
        "file_name": f"images/{split}/{video:06d}_mpii_test/{number:06d}.jpg",
        "nframes": 30,
        "is_labeled": True,
        "has_labeled_person": True,
        "ignore_regions_x": [],
        "ignore_regions_y": [],
        **changes,
    }


def person(of: Entry, person_id: int, **changes: Any) -> Entry:
    return {
        "bbox": [10.5, 20.25, 30.0, 40.0],
        "bbox_head": [12, 20, 5, 5],
        "category_id": 1,
        "image_id": of["id"],
        "id": of["id"] * 100 + person_id,
        "keypoints": [1.5, 2.5, 1] * 17,
        "person_id": person_id,
        "track_id": 3,
        **changes,
    }


FIRST, SECOND, THIRD = frame(342, 0), frame(342, 1), frame(343, 0)
PEOPLE = [person(FIRST, 0), person(SECOND, 0), person(SECOND, 7), person(THIRD, 7)]


def release(root: Path, split: str = "val", **entries: list[Entry]) -> Path:
    """`images` and `annotations` of the split's file; query.json asks for person 0 in FIRST."""
    content = {"images": [FIRST, SECOND, THIRD], "annotations": PEOPLE, "categories": []} | entries
    queries = {"images": [FIRST], "annotations": [person(FIRST, 0)]}
    for name, value in ((split, content), ("query", queries)):
        write_file(root / "posetrack_person_search" / f"{name}.json", json.dumps(value))
    for image in (FIRST, SECOND, THIRD):
        write_file(root / image["file_name"], JPEG)
    return root


def test_frames_and_people(tmp_path: Path) -> None:
    listing = list_samples("posetrack21", release(tmp_path), "val")
    assert [s.origin for s in listing.samples] == [i["file_name"] for i in (FIRST, SECOND, THIRD)]
    first, second, third = listing.samples
    # All videos have a frame 000000: the key holds the video.
    assert first.key == "posetrack21/val/000342_mpii_test/000000"
    assert third.key == "posetrack21/val/000343_mpii_test/000000"
    # Ids are beyond 32 bits, and a video's keeps its zeros.
    assert first.extra["id"] == 10003420000 > 1 << 32
    assert first.extra["vid_id"] == "000342"
    assert [p.identity for p in second.persons] == ["search:0", "search:7"]
    assert first.persons[0].box == (10.5, 20.25, 40.5, 60.25)
    assert first.persons[0].extra["keypoints"] == [1.5, 2.5, 1] * 17
    assert first.persons[0].extra["track_id"] == 3
    assert listing.found["images"] == 3
    assert listing.found["identities"] == 2
    assert read("posetrack21", tmp_path, first.locator) == JPEG


def test_boxes_outside_stay_and_those_without_area_are_kept_apart(tmp_path: Path) -> None:
    people = [
        person(FIRST, 1, bbox=[-12.5, -3, 2000, 1e3]),
        person(FIRST, 2, bbox=[5, 5, 0, 9]),
    ]
    (sample,) = list_samples("posetrack21", release(tmp_path, annotations=people), "val").samples
    assert [p.box for p in sample.persons] == [(-12.5, -3.0, 1987.5, 997.0)]
    assert [dropped["person_id"] for dropped in sample.extra[DROPPED]] == [2]  # type: ignore


def test_frames_that_are_not_labelled_are_unknown_not_empty(tmp_path: Path) -> None:
    frames = [
        FIRST,
        frame(342, 1, is_labeled=False),
        frame(343, 0, has_labeled_person=False),
        frame(343, 1),
        {k: v for k, v in frame(343, 2, is_labeled=False).items() if k != "has_labeled_person"},
    ]
    people = [person(frames[0], 1), person(frames[1], 1, keypoints=[])]
    listing = list_samples(
        "posetrack21", release(tmp_path, images=frames, annotations=people), "val"
    )
    # Boxes without poses are labels all the same.
    assert [s.origin for s in listing.samples] == [i["file_name"] for i in frames[:2]]
    assert listing.excluded == {"not labelled": 2, "no person": 1}
    assert listing.total == 5
    assert listing.found["images"] == 5


def test_regions_to_ignore_are_polygons(tmp_path: Path) -> None:
    x, y = [[10, 30.5, 20], [100, 200, 200, 100]], [[5, 5, 25], [-4, -4, 50, 50]]
    frames = [
        {**FIRST, "ignore_regions_x": x, "ignore_regions_y": y},
        {**SECOND, "ignore_regions_x": x[0], "ignore_regions_y": y[0]},
        {**THIRD, "ignore_regions_x": [[]], "ignore_regions_y": [[]]},
    ]
    first, second, third = list_samples(
        "posetrack21", release(tmp_path, images=frames), "val"
    ).samples
    regions = [p for p in first.persons if p.ignore]
    assert [region.box for region in regions] == [(10, 5, 30.5, 25), (100, -4, 200, 50)]
    assert regions[0].extra == {"x": x[0], "y": y[0]}
    assert {region.category for region in regions} == {"ignore_region"}
    assert all(region.identity is None for region in regions)
    assert [p.box for p in second.persons if p.ignore] == [(10, 5, 30.5, 25)]
    assert not [p for p in third.persons if p.ignore]


def test_the_protocol_searches_all_other_frames(tmp_path: Path) -> None:
    listing = list_samples("posetrack21", release(tmp_path), "val")
    (table,) = listing.protocols.values()
    assert list(listing.protocols) == ["PoseTrack21"]
    assert table.schema == PROTOCOL_SCHEMA
    assert table.to_pylist() == [
        {
            "query": "0_val/000342_mpii_test/000000",
            "key": listing.samples[0].key,
            "box": [10.5, 20.25, 40.5, 60.25],
            "identity": "search:0",
            "gallery": None,
            "positives": None,
        }
    ]
    assert listing.found["queries"] == listing.found["query identities"] == 1
    release(tmp_path, "train")
    assert not list_samples("posetrack21", tmp_path, "train").protocols


def test_a_query_outside_of_the_gallery_is_a_fault(tmp_path: Path) -> None:
    people = [one for one in PEOPLE if one["image_id"] != FIRST["id"]]
    source = release(tmp_path, images=[SECOND, THIRD], annotations=people)
    (faulty,) = list_samples("posetrack21", source, "val").faulty
    assert faulty.origin == FIRST["file_name"]
    assert faulty.reason == "named by query.json and not by val.json"


def test_a_missing_image_is_a_fault(tmp_path: Path) -> None:
    source = release(tmp_path)
    (source / SECOND["file_name"]).unlink()
    listing = list_samples("posetrack21", source, "val")
    assert [faulty.origin for faulty in listing.faulty] == [SECOND["file_name"]]
    assert listing.found["images"] == 2


def test_images_in_the_parts_of_a_tar(tmp_path: Path) -> None:
    """posetrack18_images.tar.aa ... as downloaded, beside annotations in a folder of their own."""
    whole = release(tmp_path / "whole")
    packed = tmp_path / "packed"
    shutil.copytree(
        whole / "posetrack_person_search", packed / "PoseTrack21" / "posetrack_person_search"
    )
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(whole / "images", "images")
    data = (tmp_path / "images.tar").read_bytes()
    for place, part in enumerate(("aa", "ab", "ac")):
        third = -(-len(data) // 3)
        write_file(
            packed / f"posetrack18_images.tar.{part}", data[place * third : (place + 1) * third]
        )
    listing = list_samples("posetrack21", packed, "val")
    expected = list_samples("posetrack21", whole, "val")
    assert [(s.key, s.origin) for s in listing.samples] == [
        (s.key, s.origin) for s in expected.samples
    ]
    assert read("posetrack21", packed, listing.samples[2].locator) == JPEG


def test_encrypted_annotations_are_named(tmp_path: Path) -> None:
    path = tmp_path / "posetrack21_annotations.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("posetrack_person_search/train.json", "secret")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is encrypted: unpack it with its password"):
        list_samples("posetrack21", tmp_path, "train")


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (
            {"annotations": [{k: v for k, v in PEOPLE[0].items() if k != "person_id"}]},
            r"val\.json, annotations\[0\] has no person_id: PoseTrack18",
        ),
        (
            {"annotations": [person(FIRST, 1), person(FIRST, True)]},
            r"annotations\[1\]: 'person_id'",
        ),
        ({"annotations": [person(frame(1, 1), 1)]}, "no frame has its image_id 10000010001"),
        (
            {"annotations": [person(FIRST, 1, bbox=[1, 2, 3])]},
            r"annotations\[0\]: bbox is not four",
        ),
        ({"annotations": [person(FIRST, 1, bbox=[1, 2, 3, float("nan")])]}, r"val\.json: .*NaN"),
        ({"annotations": [person(FIRST, 1, category_id=2)]}, "category_id is 2"),
        (
            {"images": [FIRST, {**SECOND, "vid_id": 342}]},
            r"images\[1\]: 'vid_id' is missing or not",
        ),
        ({"images": [FIRST, {**SECOND, "has_labeled_person": 1}]}, "'has_labeled_person'"),
        (
            {"images": [FIRST, {**SECOND, "ignore_regions_x": [[1, 2]]}]},
            "not the sides of the same polygons",
        ),
        ({"images": [FIRST, FIRST]}, r"images\[1\]: repeats"),
        (
            {"images": [{**FIRST, "ignore_regions_x": [["a"]], "ignore_regions_y": [[1]]}, SECOND]},
            r"images\[0\]",
        ),
        ({"images": [{**FIRST, "ignore_regions_x": 5}]}, r"images\[0\]: ignore_regions_x"),
        ({"images": {}}, "'images' is missing or not a list"),
    ],
)
def test_what_is_not_as_posetrack21_writes_it(
    tmp_path: Path, entries: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        list_samples("posetrack21", release(tmp_path, **entries), "val")


def test_missing_parts(tmp_path: Path) -> None:
    source = release(tmp_path)
    (source / "posetrack_person_search" / "query.json").rename(source / "queries.json")
    with pytest.raises(UserError, match=r"query\.json is missing"):
        list_samples("posetrack21", source, "val")
    (source / "queries.json").rename(source / "posetrack_person_search" / "query.json")
    shutil.rmtree(source / "images")
    with pytest.raises(UserError, match=r"posetrack18_images\.tar\.aa"):
        list_samples("posetrack21", source, "val")
    write_file(source / "posetrack_person_search" / "val.json", '{"images": [')
    with pytest.raises(UserError, match=r"val\.json: not valid JSON"):
        list_samples("posetrack21", source, "val")


def test_the_miniature_has_the_releases_traps(miniature: tuple[Path, list[TruthImage]]) -> None:
    source = miniature[0] / "posetrack21"
    listings = {split: list_samples("posetrack21", source, split) for split in ("train", "val")}
    people = {
        split: {p.identity for s in listing.samples for p in s.persons if p.identity}
        for split, listing in listings.items()
    }
    assert people["train"] & people["val"] == {"search:1600"}
    assert "search:0" in people["val"]
    for listing in listings.values():
        assert listing.excluded["not labelled"] > 0
        assert any(
            not p.extra["keypoints"] for s in listing.samples for p in s.persons if p.identity
        )
        assert any(p.ignore for s in listing.samples for p in s.persons)
    queries = listings["val"].protocols["PoseTrack21"].to_pylist()
    keys = {sample.key: sample for sample in listings["val"].samples}
    for query in queries:
        sample = keys[query["key"]]
        assert [p.box for p in sample.persons if p.identity == query["identity"]] == [
            tuple(query["box"])
        ]
    assert len(queries) > 2
