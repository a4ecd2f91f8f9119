"""PRW: parsing rules, quiet traps and bad input on hand-made releases, and the look-alike's quirks."""

import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from releases import JPEG, list_samples, read, write_file
from scipy.io import loadmat, savemat

from pipeline.errors import UserError
from pipeline.shards import PROTOCOL_SCHEMA
from sharding.datasets.base import FaultySample
from sharding.miniature import TruthImage
from sharding.miniature.matlab import cell

Rows = list[list[float]]
SOMEBODY: Rows = [[7, 10, 20, 30, 80]]
FRAMES: dict[str, Rows] = {
    "c1s1_000151": SOMEBODY,
    "c6s2_000176": [[7, -1.7030, 295.5756, 74.6436, 338.2289], [-2, 0.5, 2, 3, 4]],
    "c3s2_044587": [[605, 1, 2, 3, 4]],
}
QUERIES = "7 -1.7030 295.5756 74.6436 338.2289 c6s2_000176\r\n605 1 2 3 4 c3s2_044587\r\n"


def annotate(root: Path, frame: str, **variables: Any) -> None:
    path = root / "annotations" / f"{frame}.jpg.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: np.array(rows, np.float64) for name, rows in variables.items()})


def prw(root: Path, train: tuple[str, ...] = ("c1s1_000151",), queries: str = QUERIES) -> Path:
    """All of FRAMES that are not in `train` are in the test split."""
    for frame, rows in FRAMES.items():
        write_file(root / "frames" / f"{frame}.jpg", JPEG)
        annotate(root, frame, box_new=rows)
    test = [frame for frame in FRAMES if frame not in train]
    savemat(root / "frame_train.mat", {"img_index_train": cell(train)})
    savemat(root / "frame_test.mat", {"img_index_test": cell(test)})
    write_file(root / "query_info.txt", queries)
    return root


def test_boxes_stay_floats_and_leave_the_frame(tmp_path: Path) -> None:
    listing = list_samples("prw", prw(tmp_path), "test")
    known, nobody = listing.samples[0].persons
    # Truncated or clipped before adding, the right edge would be elsewhere.
    assert known.box == (-1.7030, 295.5756, -1.7030 + 74.6436, 295.5756 + 338.2289)
    assert known.extra == {"row": [7, -1.7030, 295.5756, 74.6436, 338.2289]}
    assert known.camera == "6"
    # Whom nobody named is a person all the same.
    assert (nobody.identity, nobody.ignore) == (None, False)
    assert nobody.extra["row"][0] == -2
    assert listing.samples[0].key == "prw/test/c6s2_000176"
    assert read("prw", tmp_path, listing.samples[0].locator) == JPEG
    assert listing.found == {
        "images": 2,
        "persons": 3,
        "ignore regions": 0,
        "kept boxes": 3,
        "dropped boxes": 0,
        "labelled persons": 2,
        "identities": 2,
        "queries": 2,
    }


def test_both_splits_number_people_alike(tmp_path: Path) -> None:
    source = prw(tmp_path)
    (train,) = list_samples("prw", source, "train").samples
    assert train.persons[0].identity == "person:7"
    assert list_samples("prw", source, "test").samples[0].persons[0].identity == "person:7"


def test_a_frame_may_hold_one_person_twice_boxes_without_area_and_nobody(tmp_path: Path) -> None:
    source = prw(tmp_path, train=tuple(FRAMES))
    frames = list(FRAMES)
    twice: Rows = [[9, 1, 2, 30, 40], [9, 50, 2, 30, 40], [9, 1, 1, 0, 40], [-2, 1, 1, 5, -1]]
    annotate(source, frames[0], box_new=twice)
    annotate(source, frames[1], box_new=np.empty((0, 5)))
    annotate(source, frames[2], box_new=np.empty((0, 0)))
    listing = list_samples("prw", source, "train")
    assert [p.identity for p in listing.samples[0].persons] == ["person:9", "person:9"]
    assert listing.samples[0].extra["dropped_boxes"] == twice[2:]
    assert [sample.persons for sample in listing.samples[1:]] == [(), ()]
    assert listing.found["labelled persons"] == listing.found["dropped boxes"] == 2
    assert listing.found["identities"] == 1


def test_the_matrix_has_one_of_three_names_and_the_newest_counts(tmp_path: Path) -> None:
    source = prw(tmp_path, train=tuple(FRAMES))
    old: Rows = [[1, 0, 0, 9, 9]]
    for frame, variables in zip(
        FRAMES,
        (
            {"anno_previous": old, "box_new": SOMEBODY},
            {"anno_previous": old, "anno_file": SOMEBODY},
            {"anno_previous": SOMEBODY},
        ),
    ):
        annotate(source, frame, **variables)
    samples = list_samples("prw", source, "train").samples
    assert [sample.persons[0].extra["row"] for sample in samples] == SOMEBODY * 3


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_queries(tmp_path: Path, newline: str) -> None:
    lines = [*QUERIES.split(), *QUERIES.split()[:6]]
    text = newline.join(" ".join(lines[at : at + 6]) for at in range(0, 18, 6))
    protocols = list_samples("prw", prw(tmp_path, queries=text), "test").protocols
    assert protocols.keys() == {"PRW"}
    assert protocols["PRW"].schema == PROTOCOL_SCHEMA
    first, second, again = protocols["PRW"].to_pylist()
    assert first == {
        "query": "7_c6s2_000176",
        "key": "prw/test/c6s2_000176",
        "box": [-1.7030, 295.5756, -1.7030 + 74.6436, 295.5756 + 338.2289],
        "identity": "person:7",
        "gallery": None,
        "positives": None,
    }
    assert second["query"] == "605_c3s2_044587"
    assert again == {**first, "query": "7_c6s2_000176_2"}
    assert not list_samples("prw", tmp_path, "train").protocols


def test_a_query_of_another_frame_is_listed_as_lacking(tmp_path: Path) -> None:
    listing = list_samples("prw", prw(tmp_path, queries="7 10 20 30 80 c1s1_000151\n"), "test")
    reason = "named by query_info.txt and not by frame_test.mat"
    assert listing.faulty == (
        FaultySample("prw/test/c1s1_000151", "frames/c1s1_000151.jpg", reason),
    )
    assert listing.protocols["PRW"]["key"].to_pylist() == ["prw/test/c1s1_000151"]
    assert listing.total == 3


def test_what_is_missing_or_damaged_costs_one_sample(tmp_path: Path) -> None:
    source = prw(tmp_path, train=tuple(FRAMES))
    image, lacking, damaged = FRAMES
    (source / "frames" / f"{image}.jpg").unlink()
    (source / "annotations" / f"{lacking}.jpg.mat").unlink()
    write_file(source / "annotations" / f"{damaged}.jpg.mat", b"<html>")
    listing = list_samples("prw", source, "train")
    assert [(faulty.key, faulty.origin) for faulty in listing.faulty] == [
        (f"prw/train/{image}", f"frames/{image}.jpg"),
        (f"prw/train/{lacking}", f"annotations/{lacking}.jpg.mat"),
        (f"prw/train/{damaged}", f"annotations/{damaged}.jpg.mat"),
    ]
    assert listing.faulty[2].reason.startswith("damaged annotation file: no MATLAB 5 file")
    assert str(tmp_path) not in listing.faulty[2].reason
    assert listing.total == 3


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"boxes": SOMEBODY}, "holds none of box_new"),
        ({"box_new": [[1, 2, 3, 4]]}, "rows of 5 numbers"),
        ({"box_new": [[1], [2], [3], [4], [5]]}, "rows of 5 numbers"),
        ({"box_new": [[1, 2, 3, 4, np.nan]]}, "not finite numbers"),
        ({"box_new": [[1.5, 2, 3, 4, 5]]}, "a person's id is 1.5"),
    ],
)
def test_an_unsound_annotation_costs_one_sample(
    tmp_path: Path, variables: dict[str, Any], complaint: str
) -> None:
    source = prw(tmp_path)
    annotate(source, "c1s1_000151", **variables)
    (faulty,) = list_samples("prw", source, "train").faulty
    assert complaint in faulty.reason


def test_bad_lists_and_queries_are_named(tmp_path: Path) -> None:
    source = prw(tmp_path)
    whole = (source / "frame_test.mat").read_bytes()
    for content, complaint in (
        (b"", "no MATLAB 5"),
        (whole[:200], "it ends early"),
        (JPEG, "no MATLAB"),
    ):
        write_file(source / "frame_test.mat", content)
        with pytest.raises(UserError, match=rf"frame_test\.mat is not .*{complaint}"):
            list_samples("prw", source, "test")
    for names, complaint in ((cell(["c1s1_000151", "../x"]), "'../x' is not named"), ([1], "cell")):
        savemat(source / "frame_test.mat", {"img_index_test": names})
        with pytest.raises(UserError, match=rf"frame_test\.mat is not .*{complaint}"):
            list_samples("prw", source, "test")
    savemat(source / "frame_test.mat", {"img_index": cell(["c1s1_000151"])})
    with pytest.raises(UserError, match=r"no variable 'img_index_test' in it, but img_index"):
        list_samples("prw", source, "test")
    (source / "frame_test.mat").unlink()
    with pytest.raises(UserError, match=r"frame_test\.mat is missing"):
        list_samples("prw", source, "test")


@pytest.mark.parametrize(
    "line",
    ["7 1 2 3 c1s1_000151", "x 1 2 3 4 c1s1_000151", "7 1 2 3 nan c1s1_000151", "7 1 2 3 4 x"],
)
def test_a_bad_query_is_named(tmp_path: Path, line: str) -> None:
    source = prw(tmp_path, queries=f"{QUERIES}{line}\n")
    with pytest.raises(UserError, match=r"query_info\.txt, line 3: expected a person's id"):
        list_samples("prw", source, "test")


def test_the_zip_as_downloaded_with_or_without_its_folder(tmp_path: Path) -> None:
    source = prw(tmp_path / "unpacked")
    plain = list_samples("prw", source, "test")
    for number, top in enumerate(("", "PRW-v16.04.20/")):
        archive = tmp_path / str(number) / "PRW-v16.04.20.zip"
        archive.parent.mkdir()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in sorted(source.rglob("*.*")):
                packed.write(file, f"{top}{file.relative_to(source)}")
        listing = list_samples("prw", archive.parent, "test")
        assert [(s.key, s.origin, s.persons) for s in listing.samples] == [
            (s.key, s.origin, s.persons) for s in plain.samples
        ]
        assert listing.protocols == plain.protocols
        assert read("prw", archive.parent, listing.samples[0].locator) == JPEG


def test_the_miniature_has_the_quirks_of_the_release(
    miniature: tuple[Path, list[TruthImage]],
) -> None:
    folder = miniature[0] / "prw" / "PRW-v16.04.20"
    truth = {i.name.split("/")[-1]: i for i in miniature[1] if i.dataset == "prw"}
    assert {p.stem for p in (folder / "annotations").iterdir()} == truth.keys()
    matrices = [loadmat(p) for p in sorted((folder / "annotations").glob("*.jpg.mat"))]
    names = {name for matrix in matrices for name in matrix if not name.startswith("__")}
    assert names == {"box_new", "anno_file", "anno_previous"}
    people = {
        split: {p.identity for i in truth.values() if i.split == split for p in i.persons} - {None}
        for split in ("train", "test")
    }
    assert people["train"] & people["test"]
    listed = loadmat(folder / "ID_test.mat")["ID_test2"].ravel().astype(int).astype(str)
    assert set(listed) >= people["test"] - people["train"]
    assert any(min(p.box[:2]) < 0 for i in truth.values() for p in i.persons)
    assert all(
        max((ids.count(p) for p in ids if p), default=0) <= 2
        for ids in ([p.identity for p in i.persons] for i in truth.values())
    )
    cameras = defaultdict(set)
    for image in truth.values():
        for person in image.persons:
            cameras[person.identity].add(person.camera)
            assert image.name.split("/")[-1][1] == person.camera
    lines = (folder / "query_info.txt").read_bytes().decode().split("\r\n")[:-1]
    for line in lines:
        person, *xywh, frame = line.split()
        assert (folder / "query_box" / f"{person}_{frame}.jpg").is_file()
        assert person in people["test"] - people["train"]
        assert len(cameras[person]) > 1
        x, y, width, height = map(float, xywh)
        boxes = [p.box for p in truth[f"{frame}.jpg"].persons if p.identity == person]
        assert (
            min(np.abs(np.subtract(box, (x, y, x + width, y + height))).max() for box in boxes)
            < 2e-4
        )
    assert len(lines) > 3
