"""CrowdHuman and EuroCity Persons: parsing rules, quiet traps and bad input on hand-made releases."""

import json
from pathlib import Path
from typing import Any

import pytest
from releases import JPEG, list_samples, read, write_file

from pipeline.errors import UserError
from sharding.datasets import ADAPTERS
from sharding.datasets.base import FaultySample, Listing
from sharding.output import compare_counts
from sharding.summary import count_lines


def person(fbox: list[int], **members: Any) -> dict[str, Any]:
    return {
        "tag": "person",
        "fbox": fbox,
        "vbox": fbox,
        "hbox": [1, 1, 2, 2],
        "head_attr": {},
    } | members


def crowdhuman(root: Path, *records: dict[str, Any] | str) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    write_file(root / "annotation_train.odgt", "\n".join(lines) + "\n")
    for record in records:
        if isinstance(record, dict):
            write_file(root / "Images" / f"{record['ID']}.jpg", JPEG)
    return root


def test_crowdhuman_boxes_leave_the_image_and_masks_are_ignored(tmp_path: Path) -> None:
    boxes = [
        person([-120, 5, 300, 400], vbox=[-1, 5, 100, 200], extra={"box_id": 0, "occ": 1}),
        person([1, 2, 3, 4], tag="mask", extra={"ignore": 1}),
        person([1, 2, 3, 4], extra={"ignore": 1}),
        person([1, 2, 3, 4], extra={"ignore": 0}, head_attr={"ignore": 1}),
        person([7, 8, 0, 4]),
        person([7, 8, 5, 4], vbox=[7, 8, 5, -1]),
    ]
    source = crowdhuman(tmp_path, {"ID": "273271,c9db000d5146c15", "gtboxes": boxes})
    listing = list_samples("crowdhuman", source, "train")
    (sample,) = listing.samples
    assert sample.key == "crowdhuman/train/273271,c9db000d5146c15"
    assert read("crowdhuman", source, sample.locator) == JPEG
    assert sample.size_bytes == len(JPEG)
    assert sample.persons[0].box == (-120, 5, 180, 405)
    assert sample.persons[0].visible_box == (-1, 5, 99, 205)
    assert sample.persons[0].extra["extra"] == {"box_id": 0, "occ": 1}
    assert sample.persons[0].extra["hbox"] == [1, 1, 2, 2]
    # The head's own ignore flag (the fourth box) says nothing about the body.
    assert [person.ignore for person in sample.persons] == [False, True, True, False, False]
    assert sample.persons[1].category == "mask"
    assert sample.persons[4].visible_box is None
    assert sample.persons[4].extra["vbox"] == [7, 8, 5, -1]
    assert sample.extra["dropped_boxes"] == [boxes[4]]
    assert listing.found == {
        "images": 1,
        "persons": 3,
        "ignore regions": 2,
        "kept boxes": 5,
        "dropped boxes": 1,
    }


def test_a_perfect_copy_of_crowdhuman_is_the_release_as_published() -> None:
    found = {"images": 15_000, "persons": 339_565, "ignore regions": 99_218, "kept boxes": 438_783}
    crowdhuman = ADAPTERS["crowdhuman"]

    def lines(**differing: int) -> list[str]:
        listing = Listing([], 15_000, found={**found, **differing})
        return count_lines("crowdhuman train", compare_counts(crowdhuman, "train", listing))

    assert lines() == []
    (line,) = lines(images=14_962)
    assert line.endswith("not the release as published: images 14,962 of 15,000 (V)")


def test_crowdhuman_lists_missing_images_and_goes_on(tmp_path: Path) -> None:
    source = crowdhuman(tmp_path, {"ID": "1,a", "gtboxes": []}, {"ID": "2,b", "gtboxes": []})
    (source / "Images" / "1,a.jpg").unlink()
    listing = list_samples("crowdhuman", source, "train")
    assert [sample.origin for sample in listing.samples] == ["Images/2,b.jpg"]
    assert listing.faulty == (FaultySample("crowdhuman/train/1,a", "Images/1,a.jpg"),)
    assert listing.found["images"] == 1
    assert listing.total == 2


def test_crowdhuman_skips_blank_lines(tmp_path: Path) -> None:
    source = crowdhuman(tmp_path, {"ID": "1,a", "gtboxes": []}, "", {"ID": "2,b", "gtboxes": []})
    assert len(list_samples("crowdhuman", source, "train").samples) == 2
    write_file(source / "annotation_train.odgt", "\n \n")
    with pytest.raises(UserError, match="is empty"):
        list_samples("crowdhuman", source, "train")


def test_crowdhuman_archives_unpacked_side_by_side(tmp_path: Path) -> None:
    source = crowdhuman(tmp_path, {"ID": "1,a", "gtboxes": []}, {"ID": "2,b", "gtboxes": []})
    for part, name in (("CrowdHuman_train01", "1,a.jpg"), ("CrowdHuman_train02", "2,b.jpg")):
        write_file(source / part / "Images" / name, (source / "Images" / name).read_bytes())
        (source / "Images" / name).unlink()
    listing = list_samples("crowdhuman", source, "train")
    assert [sample.locator for sample in listing.samples] == [
        "CrowdHuman_train01/Images/1,a.jpg",
        "CrowdHuman_train02/Images/2,b.jpg",
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"ID": "2,b", "gtboxes": [', "line 2: not valid JSON"),
        ("[" * 100_000, "line 2: not valid JSON"),
        ('{"ID": ' + "[" * 40 + "]" * 40 + "}", "line 2: nested in more than 32 levels"),
        ('{"ID": "\\ud800", "gtboxes": []}', "line 2: not valid JSON .*surrogates"),
        ('{"ID": "2,b", "gtboxes": [{"fbox": [1, 2, 3, 1' + "0" * 400 + "]}]}", "line 2: fbox"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"gtboxes": []}', "line 2: 'ID'"),
        ('{"ID": "2,b"}', "line 2: 'gtboxes'"),
        ('{"ID": "2,b", "gtboxes": [{"tag": "person"}]}', "line 2: fbox"),
        ('{"ID": "2,b", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3]}]}', "line 2: fbox"),
        (
            '{"ID": "2,b", "gtboxes": [{"tag": "mask", "fbox": [1, 2, 3, Infinity]}]}',
            "line 2: not valid JSON",
        ),
        ('{"ID": "1,a", "gtboxes": []}', "line 2: repeats the ID of line 1"),
    ],
)
def test_crowdhuman_names_the_bad_line(tmp_path: Path, line: str, complaint: str) -> None:
    source = crowdhuman(tmp_path, {"ID": "1,a", "gtboxes": []}, line)
    write_file(source / "Images" / "2,b.jpg", JPEG)
    with pytest.raises(UserError, match=complaint) as caught:
        list_samples("crowdhuman", source, "train")
    assert "annotation_train.odgt" in str(caught.value)


def test_crowdhuman_says_what_a_wrong_folder_lacks(tmp_path: Path) -> None:
    write_file(tmp_path / "holiday.jpg", JPEG)
    with pytest.raises(UserError, match=r"holds holiday\.jpg; expected annotation_train\.odgt"):
        list_samples("crowdhuman", tmp_path, "train")
    write_file(tmp_path / "Images" / "1,a.jpg", JPEG)
    with pytest.raises(UserError, match=r"annotation_train\.odgt is missing"):
        list_samples("crowdhuman", tmp_path, "train")
    write_file(tmp_path / "annotation_train.odgt", "")
    with pytest.raises(UserError, match="is empty"):
        list_samples("crowdhuman", tmp_path, "train")
    (tmp_path / "Images" / "1,a.jpg").unlink()
    with pytest.raises(UserError, match="no image there"):
        list_samples("crowdhuman", tmp_path, "train")


def ecp_object(identity: str | None, box: list[int], **members: Any) -> dict[str, Any]:
    corners = dict(zip(("x0", "y0", "x1", "y1"), box))
    return {"identity": identity, **corners, "tags": [], "children": []} | members


def ecp_frame(*objects: dict[str, Any]) -> dict[str, Any]:
    size = {"imagewidth": 1920, "imageheight": 1024}
    return {"identity": "frame", **size, "tags": ["motion blur"], "children": list(objects)}


def ecp(root: Path, **frames: dict[str, Any]) -> Path:
    """Frames of the city of Roma by their number, by day and in the training part."""
    for name, frame in frames.items():
        write_file(root / f"day/labels/train/roma/roma_{name}.json", json.dumps(frame))
        write_file(root / f"day/img/train/roma/roma_{name}.png", JPEG)
    return root


PEDESTRIAN = ecp_object("pedestrian", [10, 20, 30, 80])


def test_ecp_riders_groups_and_depictions_are_neither_persons_nor_background(
    tmp_path: Path,
) -> None:
    vehicle = ecp_object("bicycle", [100, 60, 160, 120], tags=["occluded>10"])
    co_rider = ecp_object("co-rider", [130, 20, 150, 90])
    frame = ecp_frame(
        ecp_object(
            "pedestrian ", [0, 20, 40, 120], tags=["occluded >40", "truncated>10"], Orient=90.0
        ),
        ecp_object("rider", [110, 20, 150, 90], children=[vehicle, co_rider]),
        ecp_object("person-group-far-away", [5, 5, 50, 20]),
        ecp_object("rider+vehicle-group-far-away", [60, 5, 90, 20]),
        ecp_object("bicycle-group", [200, 60, 260, 120]),
        ecp_object("motorbike", [300, 60, 360, 120]),
        ecp_object("pedestrian", [1, 1, 20, 60], tags=["sitting-lying"]),
        ecp_object("pedestrian", [2, 1, 20, 60], tags=["behind-glass"]),
        ecp_object("pedestrian", [3, 1, 20, 60], tags=["depiction"]),
        ecp_object(None, [4, 1, 20, 60]),
        ecp_object("pedestrian", [9, 9, 9, 30]),
    )
    listing = list_samples("ecp", ecp(tmp_path, a=frame), "day_train")
    (sample,) = listing.samples
    positive = [person for person in sample.persons if not person.ignore]
    assert [person.box for person in positive] == [(0, 20, 40, 120)]
    assert positive[0].category == "pedestrian"
    assert positive[0].tags == ("occluded>40", "truncated>10")
    assert positive[0].occlusion == ">40"
    assert positive[0].extra == {"Orient": 90.0}
    assert [(person.category, person.box[0]) for person in sample.persons if person.ignore] == [
        ("rider", 110),
        ("co-rider", 130),
        ("person-group-far-away", 5),
        ("rider+vehicle-group-far-away", 60),
        ("pedestrian", 1),
        ("pedestrian", 2),
        ("pedestrian", 3),
        ("unknown", 4),
    ]
    rider = sample.persons[1]
    assert rider.extra["vehicles"] == [{k: vehicle[k] for k in vehicle if k != "children"}]
    others = sample.extra["other_objects"]
    assert [entry["identity"] for entry in others] == ["bicycle-group", "motorbike"]
    assert [entry["x0"] for entry in sample.extra["dropped_boxes"]] == [9]
    assert sample.expected_size == (1920, 1024)
    assert sample.tags == ("motion blur",)


@pytest.mark.parametrize("inside", ["ECP", "."])
def test_ecp_parts_of_the_day_share_names_but_not_keys(tmp_path: Path, inside: str) -> None:
    ecp(tmp_path / inside / "img", **{"00000": ecp_frame(PEDESTRIAN)})  # a parent named `img`
    source = tmp_path / inside / "img"
    for time, part in (("day", "val"), ("night", "train"), ("night", "val")):
        for kind, suffix in (("labels", ".json"), ("img", ".png")):
            name = f"roma/roma_00000{suffix}"
            content = (source / "day" / kind / "train" / name).read_bytes()
            write_file(source / time / kind / part / name, content)
    splits = ADAPTERS["ecp"].splits
    samples = [list_samples("ecp", source, split).samples[0] for split in splits]
    assert [sample.key for sample in samples] == [
        f"ecp/{split}/roma/roma_00000" for split in splits
    ]
    assert samples[3].origin == "night/img/val/roma/roma_00000.png"
    assert read("ecp", source, samples[3].locator) == JPEG


def test_ecp_with_its_top_folder(tmp_path: Path) -> None:
    listing = list_samples(
        "ecp", ecp(tmp_path / "ECP", a=ecp_frame(PEDESTRIAN)).parent, "day_train"
    )
    assert listing.samples[0].locator == "ECP/day/img/train/roma/roma_a.png"
    assert listing.samples[0].origin == "day/img/train/roma/roma_a.png"


def test_ecp_frames_without_a_pedestrian_are_left_out_and_counted(tmp_path: Path) -> None:
    rider = ecp_object("rider", [1, 2, 30, 40])
    source = ecp(tmp_path, a=ecp_frame(), b=ecp_frame(PEDESTRIAN), c=ecp_frame(rider))
    listing = list_samples("ecp", source, "day_train")
    assert [sample.key for sample in listing.samples] == ["ecp/day_train/roma/roma_b"]
    assert listing.excluded == {"no pedestrian": 2}
    assert listing.found["images"] == 3
    assert listing.found["images with pedestrians"] == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda frame: {"identity": "@converter", "children": [{"children": [frame]}]},
        lambda frame: {"@converter": "v1", "children": [{"identity": "x", "children": [frame]}]},
        lambda frame: {"identity": "seqlist", "children": {"children": frame}},
        lambda frame: {"identity": "seqlist", "children": [{"children": [frame]}]},
    ],
)
def test_ecp_frames_inside_of_other_levels(tmp_path: Path, wrap: Any) -> None:
    source = ecp(tmp_path, a=wrap(ecp_frame(PEDESTRIAN)))
    assert list_samples("ecp", source, "day_train").samples[0].persons[0].box == (10, 20, 30, 80)


def test_ecp_lists_what_a_half_unpacked_release_lacks(tmp_path: Path) -> None:
    frames = {name: ecp_frame(PEDESTRIAN) for name in "abc"}
    source = ecp(tmp_path, **frames)
    (source / "day/img/train/roma/roma_a.png").unlink()
    (source / "day/labels/train/roma/roma_b.json").unlink()
    listing = list_samples("ecp", source, "day_train")
    assert [sample.key for sample in listing.samples] == ["ecp/day_train/roma/roma_c"]
    assert listing.faulty == (
        FaultySample("ecp/day_train/roma/roma_a", "day/img/train/roma/roma_a.png"),
        FaultySample("ecp/day_train/roma/roma_b", "day/labels/train/roma/roma_b.json"),
    )
    assert listing.found["images"] == 1
    assert listing.total == 3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON"),
        (b"\x89PNG\xff", "codec can't decode"),
        ('{"identity": "seqlist", "children": []}', "no object with identity 'frame'"),
        ('{"identity": "frame", "children": [{}]}', "not a frame as ECP labels it"),
        ('{"identity": "frame", "children": [7]}', "not a frame as ECP labels it"),
        ('{"identity": "frame", "children": ' + "[" * 40 + "]" * 40 + "}", "more than 32 levels"),
        (json.dumps(ecp_frame(ecp_object("pedestrian", [0, 0, 10**400, 9]))), "OverflowError"),
        ('{"identity": "frame", "children": []}', "'imagewidth'"),
    ],
)
def test_ecp_a_damaged_label_file_costs_one_sample(
    tmp_path: Path, content: bytes | str, complaint: str
) -> None:
    source = ecp(tmp_path, a=ecp_frame(PEDESTRIAN), b=ecp_frame(PEDESTRIAN))
    write_file(source / "day/labels/train/roma/roma_a.json", content)
    listing = list_samples("ecp", source, "day_train")
    (faulty,) = listing.faulty
    assert faulty.key == "ecp/day_train/roma/roma_a"
    assert faulty.origin == "day/labels/train/roma/roma_a.json"
    assert faulty.reason.startswith("damaged label file: ")
    assert complaint in faulty.reason
    assert str(tmp_path) not in faulty.reason
    assert listing.found["images"] == len(listing.samples) == 1


def test_ecp_says_which_archive_is_not_unpacked(tmp_path: Path) -> None:
    write_file(tmp_path / "holiday.jpg", JPEG)
    with pytest.raises(UserError, match=r"holds holiday\.jpg; expected ECP/day/img/train/"):
        list_samples("ecp", tmp_path, "day_train")
    source = ecp(tmp_path, a=ecp_frame(PEDESTRIAN))
    with pytest.raises(
        UserError, match=r"night/labels/val does not exist: .*ECP_night_labels_val\.zip"
    ):
        list_samples("ecp", source, "night_val")
    (source / "day/img/train/roma/roma_a.png").unlink()
    with pytest.raises(UserError, match=r"img/train holds roma: no frame of a city"):
        list_samples("ecp", source, "day_train")
