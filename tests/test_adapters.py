"""The adapters: parsing rules, quiet traps and bad input on hand-made releases."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.annotation import check_key
from pipeline.errors import UserError
from sharding.datasets import ADAPTERS
from sharding.datasets.base import WHOLE_CROP, Listing

JPEG = b"\xff\xd8 not decoded by any adapter \xff\xd9"


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def list_samples(name: str, source: Path, split: str) -> Listing:
    listing = ADAPTERS[name].list_samples(source, split)
    keys = [sample.key for sample in listing.samples]
    for key in keys:
        check_key(key)
    assert len(keys) == len(set(keys))
    return listing


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
    write(root / "annotation_train.odgt", "\n".join(lines) + "\n")
    for record in records:
        if isinstance(record, dict):
            write(root / "Images" / f"{record['ID']}.jpg", JPEG)
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
    assert ADAPTERS["crowdhuman"].read(source, sample.locator) == JPEG
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


def test_crowdhuman_lists_missing_images_and_goes_on(tmp_path: Path) -> None:
    source = crowdhuman(tmp_path, {"ID": "1,a", "gtboxes": []}, {"ID": "2,b", "gtboxes": []})
    (source / "Images" / "1,a.jpg").unlink()
    listing = list_samples("crowdhuman", source, "train")
    assert [sample.origin for sample in listing.samples] == ["Images/2,b.jpg"]
    assert listing.missing == ("Images/1,a.jpg",)


def test_crowdhuman_archives_unpacked_side_by_side(tmp_path: Path) -> None:
    source = crowdhuman(tmp_path, {"ID": "1,a", "gtboxes": []}, {"ID": "2,b", "gtboxes": []})
    for part, name in (("CrowdHuman_train01", "1,a.jpg"), ("CrowdHuman_train02", "2,b.jpg")):
        write(source / part / "Images" / name, (source / "Images" / name).read_bytes())
        (source / "Images" / name).unlink()
    listing = list_samples("crowdhuman", source, "train")
    assert [sample.locator for sample in listing.samples] == [
        "CrowdHuman_train01/Images/1,a.jpg",
        "CrowdHuman_train02/Images/2,b.jpg",
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "line 2: not valid JSON"),
        ('{"ID": "2,b", "gtboxes": [', "line 2: not valid JSON"),
        ("[" * 100_000, "line 2: not valid JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"gtboxes": []}', "line 2: 'ID'"),
        ('{"ID": "2,b"}', "line 2: 'gtboxes'"),
        ('{"ID": "2,b", "gtboxes": [{"tag": "person"}]}', "line 2: fbox"),
        ('{"ID": "2,b", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3]}]}', "line 2: fbox"),
        (
            '{"ID": "2,b", "gtboxes": [{"tag": "mask", "fbox": [1, 2, 3, Infinity]}]}',
            "line 2: a box",
        ),
        ('{"ID": "1,a", "gtboxes": []}', "line 2: repeats the ID of line 1"),
    ],
)
def test_crowdhuman_names_the_bad_line(tmp_path: Path, line: str, complaint: str) -> None:
    source = crowdhuman(tmp_path, {"ID": "1,a", "gtboxes": []}, line)
    write(source / "Images" / "2,b.jpg", JPEG)
    with pytest.raises(UserError, match=complaint) as caught:
        list_samples("crowdhuman", source, "train")
    assert "annotation_train.odgt" in str(caught.value)


def test_crowdhuman_says_what_a_wrong_folder_lacks(tmp_path: Path) -> None:
    write(tmp_path / "holiday.jpg", JPEG)
    with pytest.raises(UserError, match=r"holds holiday\.jpg; expected annotation_train\.odgt"):
        list_samples("crowdhuman", tmp_path, "train")
    write(tmp_path / "Images" / "1,a.jpg", JPEG)
    with pytest.raises(UserError, match=r"annotation_train\.odgt is missing"):
        list_samples("crowdhuman", tmp_path, "train")
    write(tmp_path / "annotation_train.odgt", "")
    with pytest.raises(UserError, match="is empty"):
        list_samples("crowdhuman", tmp_path, "train")
    (tmp_path / "Images" / "1,a.jpg").unlink()
    with pytest.raises(UserError, match="no image there"):
        list_samples("crowdhuman", tmp_path, "train")


@pytest.mark.parametrize("name", ADAPTERS)
def test_unknown_split_and_absent_source(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="has no split 'tset'; its splits are"):
        ADAPTERS[name].list_samples(tmp_path, "tset")
    for split in ADAPTERS[name].splits:
        with pytest.raises(UserError, match="does not exist"):
            ADAPTERS[name].list_samples(tmp_path / "nowhere", split)


MSMT17_LISTS = {
    "train": [
        "0000/0000_000_01_0303morning_0015_0.jpg 0",
        "0001/0001_045_12_0302noon_0006_12_ex.jpg 1",
    ],
    "val": ["0000/0000_001_15_0114afternoon_0015_1.jpg 0"],
    "query": ["0000/0000_000_03_0113morning_0001_0.jpg 0"],
    "gallery": ["0000/0000_001_10_0113morning_0002_0_ex.jpg 0"],
}


def msmt17(root: Path, newline: str = "\n", train: str = "train", test: str = "test") -> Path:
    for name, lines in MSMT17_LISTS.items():
        write(root / f"list_{name}.txt", newline.join(lines) + newline)
        for line in lines:
            half = test if name in ("query", "gallery") else train
            write(root / half / line.split()[0], JPEG)
    return root


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_msmt17_train_val_joins_both_lists(tmp_path: Path, newline: str) -> None:
    source = msmt17(tmp_path / "MSMT17_V1", newline).parent
    listing = list_samples("msmt17", source, "train_val")
    assert [sample.extra["list"] for sample in listing.samples] == ["train", "train", "val"]
    persons = [sample.persons[0] for sample in listing.samples]
    # Identity 0 is a real person; the camera has two digits, wherever `_ex` moves the end of the name.
    assert [person.identity for person in persons] == ["train:0000", "train:0001", "train:0000"]
    assert [person.camera for person in persons] == ["01", "12", "15"]
    assert [person.tags for person in persons] == [(), ("ex",), ()]
    assert persons[1].extra["date"] == "0302noon"
    assert all(person.box == WHOLE_CROP for person in persons)
    assert listing.found == {"images": 3, "identities": 2}
    assert len(list_samples("msmt17", source, "train").samples) == 2
    assert ADAPTERS["msmt17"].read(source, listing.samples[0].locator) == JPEG


def test_msmt17_halves_number_different_people(tmp_path: Path) -> None:
    source = msmt17(tmp_path)
    listings = {split: list_samples("msmt17", source, split) for split in ADAPTERS["msmt17"].splits}
    identities = {
        split: {sample.persons[0].identity for sample in listing.samples}
        for split, listing in listings.items()
    }
    assert identities["query"] == identities["gallery"] == {"test:0000"}
    assert not identities["query"] & identities["train_val"]
    keys = [sample.key for listing in listings.values() for sample in listing.samples]
    assert len(keys) == len(set(keys))


def test_msmt17_version_2_folders(tmp_path: Path) -> None:
    source = msmt17(tmp_path / "MSMT17_V2", train="mask_train_v2", test="mask_test_v2")
    listing = list_samples("msmt17", source, "train_val")
    assert len(listing.samples) == 3
    assert ADAPTERS["msmt17"].read(source, listing.samples[2].locator) == JPEG


def test_msmt17_counts_repeated_and_missing_images(tmp_path: Path) -> None:
    source = msmt17(tmp_path)
    path = MSMT17_LISTS["train"][1].split()[0]
    (source / "train" / path).unlink()
    write(source / "list_val.txt", MSMT17_LISTS["train"][0])
    listing = list_samples("msmt17", source, "train_val")
    assert len(listing.samples) == 1
    assert listing.missing == (f"train/{path}",)
    assert listing.excluded == {"listed twice": 1}


def test_msmt17_does_not_leave_its_folder(tmp_path: Path) -> None:
    source = msmt17(tmp_path / "release")
    write(tmp_path / "0000_000_01_0303morning_0015_0.jpg", b"secret")
    escape = "../../0000_000_01_0303morning_0015_0.jpg"
    write(source / "list_train.txt", f"{escape} 0\n")
    assert list_samples("msmt17", source, "train").missing == (f"train/{escape}",)


def test_msmt17_bad_input(tmp_path: Path) -> None:
    source = msmt17(tmp_path)
    write(source / "list_val.txt", "0000/0000_001_15_0114afternoon_0015_1.jpg\n")
    with pytest.raises(UserError, match=r"list_val\.txt, line 1: expected an image path"):
        list_samples("msmt17", source, "train_val")
    write(source / "list_val.txt", "0000/0000_c1s1_000151_01.jpg 0\n")
    with pytest.raises(UserError, match=r"line 1: .* is not named as MSMT17"):
        list_samples("msmt17", source, "train_val")
    write(source / "list_val.txt", b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list_val\.txt, near line 1: not UTF-8"):
        list_samples("msmt17", source, "train_val")
    (source / "list_val.txt").unlink()
    with pytest.raises(UserError, match=r"list_val\.txt is missing"):
        list_samples("msmt17", source, "train_val")
    (source / "test").rename(source / "rest")
    with pytest.raises(UserError, match="test is missing"):
        list_samples("msmt17", source, "query")
