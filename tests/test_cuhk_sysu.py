"""CUHK-SYSU: parsing rules, quiet traps and bad input on hand-made releases, and the look-alike's quirks."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from releases import JPEG, list_samples, read, write_file
from scipy.io import loadmat, savemat

from pipeline.errors import UserError
from pipeline.shards import PROTOCOL_SCHEMA
from sharding.datasets import matlab
from sharding.datasets.base import FaultySample
from sharding.miniature import TruthImage
from sharding.miniature.matlab import cell, integers, structs
from sharding.source import Source

Numbers = tuple[int, int, int, int]
NOWHERE = np.empty((1, 0))
GALLERY_FILE = "annotation/test/train_test/TestG50.mat"


def put_mat(path: Path, name: str, value: Any, packed: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: value}, do_compression=packed)


def entry(image: str, numbers: Numbers | NDArray[np.float64], hard: int = 0) -> dict[str, Any]:
    idlocate = numbers if isinstance(numbers, np.ndarray) else integers(numbers)
    return {"imname": image, "idlocate": idlocate, "ishard": np.uint8(hard)}


def person(idname: str, *scene: dict[str, Any]) -> dict[str, Any]:
    return {"idname": idname, "nAppear": np.uint8(len(scene)), "scene": structs(scene)}


def query(idname: str, asked: dict[str, Any], *gallery: dict[str, Any]) -> dict[str, Any]:
    row = {"Query": structs([{**asked, "idname": idname}])}
    return {**row, "Gallery": structs(gallery) if gallery else np.empty((0, 0))}


A, B, C = (100, 60, 50, 120), (200, 100, 100, 200), (1, 1, 30, 90)
BOXES: dict[str, list[tuple[Numbers, int]]] = {
    "s1.jpg": [(A, 0), (B, 1)],
    "s2.jpg": [(A, 0)],
    "s3.jpg": [(B, 0), (C, 0)],
    "s4.jpg": [(A, 0), (C, 0)],
    "s5.jpg": [(C, 0)],
}
POOL = ("s4.jpg", "s3.jpg", "s5.jpg")
TRAIN = [person("p00001", entry("s1.jpg", B), entry("s2.jpg", A))]
QUERIES = [query("p00009", entry("s3.jpg", B), entry("s4.jpg", A), entry("s5.jpg", NOWHERE))]


class Release:
    """Two training images, three in the pool; one person known in each half."""

    def __init__(self, root: Path, boxes: dict[str, list[tuple[Numbers, int]]] = BOXES) -> None:
        self.root = root
        for image in boxes:
            write_file(root / "Image" / "SSM" / image, JPEG)
        rows = [
            {
                "imname": image,
                "nAppear": np.uint8(len(found)),
                "box": structs(
                    [{"idlocate": integers(n), "ishard": np.uint8(hard)} for n, hard in found]
                ),
            }
            for image, found in boxes.items()
        ]
        put_mat(root / "annotation" / "Images.mat", "Img", structs(rows))
        put_mat(root / "annotation" / "pool.mat", "pool", cell(POOL))
        self.write_train(TRAIN)
        self.write_protocol(QUERIES)

    def write_train(self, people: Sequence[dict[str, Any]]) -> None:
        path = self.root / "annotation" / "test" / "train_test" / "Train.mat"
        put_mat(path, "Train", cell([structs([one]) for one in people]))

    def write_protocol(
        self, rows: Sequence[dict[str, Any]], file: str = GALLERY_FILE, name: str = "TestG50"
    ) -> None:
        put_mat(self.root / file, name, structs(rows))


def test_corners_count_from_one_and_small_integers_do_not_overflow(tmp_path: Path) -> None:
    assert integers(B).dtype == np.uint8
    assert int((integers(B)[0, :2] + integers(B)[0, 2:])[1]) == 44, "MATLAB's 300 in eight bits"
    release = Release(tmp_path)
    listing = list_samples("cuhk_sysu", release.root, "train")
    first = listing.samples[0]
    assert [p.box for p in first.persons] == [(99, 59, 149, 179), (199, 99, 299, 299)]
    assert first.persons[1].extra == {"idlocate": list(B)}
    assert [p.tags for p in first.persons] == [(), ("hard",)]
    assert all(p.camera is None and not p.ignore for p in first.persons)
    # A gallery's boxes are lowered too, or no annotation would fit.
    (row,) = list_samples("cuhk_sysu", release.root, "test").protocols["TestG50"].to_pylist()
    assert row["box"] == [199, 99, 299, 299]
    assert row["positives"] == [{"key": "cuhk_sysu/test/s4", "box": [99, 59, 149, 179]}]


def test_training_is_what_is_not_in_the_pool(tmp_path: Path) -> None:
    release = Release(tmp_path)
    train = list_samples("cuhk_sysu", release.root, "train")
    test = list_samples("cuhk_sysu", release.root, "test")
    assert [s.key for s in train.samples] == ["cuhk_sysu/train/s1", "cuhk_sysu/train/s2"]
    assert [s.origin for s in test.samples] == [f"Image/SSM/{image}" for image in POOL]
    assert read("cuhk_sysu", release.root, test.samples[0].locator) == JPEG
    assert train.found == {
        "images": 2,
        "persons": 3,
        "ignore regions": 0,
        "kept boxes": 3,
        "dropped boxes": 0,
        "labelled persons": 2,
        "identities": 1,
    }
    assert test.found["queries"] == test.found["protocols"] == test.found["identities"] == 1
    assert not train.protocols


def test_names_are_joined_by_image_and_exact_box(tmp_path: Path) -> None:
    release = Release(tmp_path)
    train = list_samples("cuhk_sysu", release.root, "train")
    assert [[p.identity for p in sample.persons] for sample in train.samples] == [
        [None, "person:p00001"],
        ["person:p00001"],
    ]
    test = list_samples("cuhk_sysu", release.root, "test")
    assert [[p.identity for p in sample.persons] for sample in test.samples] == [
        ["person:p00009", None],
        ["person:p00009", None],
        [None],
    ]


def test_people_of_person_mat_alone_stay_unlabelled_but_named(tmp_path: Path) -> None:
    release = Release(tmp_path)
    rows = [person("p11900", entry("s1.jpg", A)), person("p00001", entry("s2.jpg", A))]
    put_mat(release.root / "annotation" / "Person.mat", "Person", structs(rows))
    first, second = list_samples("cuhk_sysu", release.root, "train").samples
    assert first.persons[0].identity is None
    assert first.persons[0].extra == {"idlocate": list(A), "idnames": ["p11900"]}
    assert second.persons[0].extra == {"idlocate": list(A)}


def test_boxes_without_area_repeated_and_with_two_names(tmp_path: Path) -> None:
    flat: Numbers = (5, 5, 0, 9)
    release = Release(tmp_path, {**BOXES, "s1.jpg": [(A, 0), (flat, 1), (B, 0), (B, 0), (C, 0)]})
    scenes = [entry("s1.jpg", numbers) for numbers in (A, B, C)]
    release.write_train(
        [
            person("p00001", *scenes[:2], entry("s1.jpg", (7, 7, 7, 7))),
            person("p00002", scenes[0], scenes[0]),
            person("p00003", scenes[2]),
            person("p00003", scenes[2]),
        ]
    )
    first = list_samples("cuhk_sysu", release.root, "train").samples[0]
    identities = [p.identity for p in first.persons]
    # Two names for one box cannot both be right; one box twice is the same person twice.
    assert identities == [None, "person:p00001", "person:p00001", "person:p00003"]
    assert first.persons[0].extra["idnames"] == ["p00001", "p00002"]
    assert first.extra["dropped_boxes"] == [{"idlocate": list(flat), "ishard": 1}]
    lost = {"idlocate": [7, 7, 7, 7], "idnames": ["p00001"]}
    assert first.extra["names_without_box"] == [lost]


def test_galleries_hold_what_their_files_say(tmp_path: Path) -> None:
    release = Release(tmp_path)
    own = entry("s3.jpg", B)
    gallery = [
        entry("s5.jpg", np.empty((0, 0))),
        entry("s4.jpg", A),
        entry("s4.jpg", C),
        own,
    ]
    rows = [query("p00009", own, *gallery), query("p00009", own), query("p00007", gallery[2])]
    release.write_protocol(rows)
    table = list_samples("cuhk_sysu", release.root, "test").protocols["TestG50"]
    assert table.schema == PROTOCOL_SCHEMA
    table.validate(full=True)
    first, second, third = table.to_pylist()
    # A positive after a negative, one image twice, and the query's own image.
    names = ("s5", "s4", "s4", "s3")
    assert first["gallery"] == [f"cuhk_sysu/test/{name}" for name in names]
    assert [p["key"] for p in first["positives"]] == first["gallery"][1:]
    assert first["query"] == "p00009"
    assert (second["query"], second["gallery"], second["positives"]) == ("p00009_2", [], [])
    assert third["identity"] == "person:p00007"
    assert third["key"] == "cuhk_sysu/test/s4"


def test_all_eight_protocols_and_those_that_a_copy_lacks(tmp_path: Path) -> None:
    release = Release(tmp_path)
    sizes = (50, 100, 500, 1000, 2000, 4000)
    for size in sizes[1:]:
        file = f"annotation/test/train_test/TestG{size}.mat"
        release.write_protocol(QUERIES * (size // 50), file, f"TestG{size}")
    # A subset's names do not label anybody.
    other = [query("p00777", entry("s5.jpg", C), entry("s4.jpg", A)) | {"occlusion": 0.5}]
    release.write_protocol(other, "annotation/test/subset/Occlusion.mat", "Occlusion1")
    release.write_protocol(QUERIES, "annotation/test/subset/Resolution.mat", "Test_Size")
    listing = list_samples("cuhk_sysu", release.root, "test")
    names = [f"TestG{size}" for size in sizes]
    assert list(listing.protocols) == [*names, "Occlusion", "Resolution"]
    assert [len(listing.protocols[name]) for name in names] == [1, 2, 10, 20, 40, 80]
    assert listing.protocols["Occlusion"]["query"].to_pylist() == ["p00777"]
    assert (listing.found["queries"], listing.found["protocols"]) == (80, 8)
    assert listing.found["identities"] == 1
    for size in sizes:
        (release.root / f"annotation/test/train_test/TestG{size}.mat").unlink()
    with pytest.raises(UserError, match=r"TestG100\.mat is missing"):
        list_samples("cuhk_sysu", release.root, "test")


def test_images_that_are_missing_unannotated_or_not_in_the_pool(tmp_path: Path) -> None:
    release = Release(tmp_path)
    (release.root / "Image" / "SSM" / "s4.jpg").unlink()
    write_file(release.root / "Image" / "SSM" / "s6.jpg", JPEG)
    put_mat(release.root / "annotation" / "pool.mat", "pool", cell([*POOL, "s6.jpg"]))
    foreign = [entry("s1.jpg", NOWHERE), entry("s99.jpg", NOWHERE)]
    release.write_protocol([query("p00009", entry("s3.jpg", B), *foreign)])
    listing = list_samples("cuhk_sysu", release.root, "test")
    reason = "named by a test protocol and not in pool.mat"
    assert listing.faulty == (
        FaultySample("cuhk_sysu/test/s4", "Image/SSM/s4.jpg"),
        FaultySample("cuhk_sysu/test/s6", "Image/SSM/s6.jpg", "in pool.mat and not in Images.mat"),
        FaultySample("cuhk_sysu/test/s1", "Image/SSM/s1.jpg", reason),
        FaultySample("cuhk_sysu/test/s99", "Image/SSM/s99.jpg", reason),
    )
    assert listing.total == 6
    # Every key of a protocol is a sample or is accounted for.
    keys = {s.key for s in (*listing.samples, *listing.faulty)}
    assert set(listing.protocols["TestG50"].to_pylist()[0]["gallery"]) <= keys


@pytest.mark.parametrize(
    ("split", "file", "content", "complaint"),
    [
        ("train", "annotation/Images.mat", b"", "no MATLAB 5 file"),
        ("train", "annotation/Images.mat", b"<html>Sign in</html>" * 20, "no MATLAB 5 file"),
        ("train", "annotation/Images.mat", {"Image": [1]}, "no variable 'Img' in it, but Image"),
        ("train", "annotation/Images.mat", {"Img": [1, 2]}, "expected structs"),
        ("train", "annotation/Images.mat", {"Img": structs([{"imname": "s1.jpg"}])}, "box"),
        ("train", "annotation/pool.mat", {"pool": ["s1.jpg", "s2.jpg"]}, "expected a cell array"),
        ("train", "annotation/pool.mat", {"pool": cell([7])}, "expected a string"),
        ("train", "annotation/pool.mat", {"pool": cell(["../s1.jpg"])}, "is not named as CUHK"),
        ("train", "annotation/test/train_test/Train.mat", {"Train": cell([8])}, "expected structs"),
        ("test", GALLERY_FILE, b"", "no MATLAB 5 file"),
        ("test", GALLERY_FILE, b"<html>Sign in</html>" * 20, "no MATLAB 5 file"),
        (
            "test",
            GALLERY_FILE,
            {"TestG100": structs(QUERIES)},
            "no variable 'TestG50' in it, but T",
        ),
        ("test", GALLERY_FILE, {"TestG50": cell(["x"])}, "expected structs"),
        ("test", GALLERY_FILE, {"TestG50": structs([{"Query": 1.0, "Gallery": 2.0}])}, "structs"),
    ],
)
def test_a_file_of_another_kind_is_named(
    tmp_path: Path, split: str, file: str, content: bytes | dict[str, Any], complaint: str
) -> None:
    path = Release(tmp_path).root / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    with pytest.raises(UserError, match=complaint) as caught:
        list_samples("cuhk_sysu", tmp_path, split)
    assert file in str(caught.value)
    path.unlink()
    with pytest.raises(
        UserError, match=f"{path.name if split == 'train' else 'TestG100.mat'} is miss"
    ):
        list_samples("cuhk_sysu", tmp_path, split)


@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files_end_in_a_sentence(tmp_path: Path, packed: bool) -> None:
    """Cut short anywhere or with a byte changed, a protocol is refused or read, and nothing else happens."""
    release = Release(tmp_path)
    path = release.root / GALLERY_FILE
    put_mat(path, "TestG50", structs(QUERIES * 3), packed)
    whole = path.read_bytes()
    refused = 0
    rng = np.random.default_rng(0)
    changed = [bytearray(whole) for _ in range(150)]
    for data in changed:
        data[int(rng.integers(126, len(whole)))] ^= int(rng.integers(1, 256))
    for data in [whole[:-1], whole[: len(whole) // 2], whole[:130], *changed]:
        path.write_bytes(data)
        try:
            list_samples("cuhk_sysu", release.root, "test")
        except UserError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("packed", [True, False])
def test_our_reader_of_matlab_files_agrees_with_scipy(tmp_path: Path, packed: bool) -> None:
    values: dict[str, Any] = {
        "first": np.array([[1.5, -2], [3, 4], [5, 600]]),
        "small": np.array([[1, 200]], np.uint8),
        "integers": np.array([[1], [60_000]], np.uint16),
        "negative": np.array([[-5]], np.int64),
        "nothing": np.empty((1, 0)),
        "rows": structs([{"name": f"s{n}.jpg", "long name of a field": [n]} for n in range(3)]),
        "last": cell(["a", "longer than four letters"]),
    }
    path = tmp_path / "all.mat"
    savemat(path, values, do_compression=packed)
    expected, found = loadmat(path), matlab.parse(path.read_bytes())
    assert list(found) == list(values)
    for name in ("first", "small", "integers", "negative", "nothing"):
        array = found[name].numbers()
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_array_equal(array, expected[name])
    assert [one.text() for one in found["last"].cells()] == ["a", "longer than four letters"]
    assert [row["name"].text() for row in found["rows"].structs()] == ["s0.jpg", "s1.jpg", "s2.jpg"]
    streamed = list(matlab.iterate(Source(str(tmp_path)), path.name, "rows", ""))
    assert [row["long name of a field"].numbers() for row in streamed] == [0, 1, 2]


def test_protocols_are_read_a_query_at_a_time_and_checked_to_their_end(tmp_path: Path) -> None:
    release = Release(tmp_path)
    path = release.root / GALLERY_FILE
    put_mat(path, "TestG50", structs(QUERIES * 3), packed=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes(100))
    rows = matlab.iterate(Source(str(release.root)), GALLERY_FILE, "TestG50", "")
    assert next(rows).keys() == {"Query", "Gallery"}
    with pytest.raises(UserError, match=GALLERY_FILE):
        list_samples("cuhk_sysu", release.root, "test")
    put_mat(path, "TestG50", structs(QUERIES * 3))
    packed = path.read_bytes()
    path.write_bytes(packed[:-1] + bytes([packed[-1] ^ 1]))
    with pytest.raises(UserError, match="cannot be inflated"):
        list_samples("cuhk_sysu", release.root, "test")


@pytest.mark.parametrize("top", ["", "dataset/"])
def test_the_zip_as_downloaded(tmp_path: Path, top: str) -> None:
    release = Release(tmp_path / "unpacked")
    archive = tmp_path / "packed" / "CUHK-SYSU.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(release.root.rglob("*.*")):
            packed.write(file, f"{top}{file.relative_to(release.root)}")
    for split in ("train", "test"):
        plain = list_samples("cuhk_sysu", release.root, split)
        listing = list_samples("cuhk_sysu", archive.parent, split)
        assert [(s.key, s.origin, s.persons) for s in listing.samples] == [
            (s.key, s.origin, s.persons) for s in plain.samples
        ]
        assert listing.protocols == plain.protocols
        assert read("cuhk_sysu", archive.parent, listing.samples[0].locator) == JPEG


def test_the_miniature_has_the_quirks_of_the_release(
    miniature: tuple[Path, list[TruthImage]],
) -> None:
    folder = miniature[0] / "cuhk_sysu" / "annotation"
    truth = {i.name.split("/")[-1]: i for i in miniature[1] if i.dataset == "cuhk_sysu"}
    images = loadmat(folder / "Images.mat")["Img"].ravel()
    assert {str(row["imname"][0]) for row in images} == truth.keys()
    boxes = [box["idlocate"] for row in images for box in row["box"].ravel()]
    assert {box.dtype for box in boxes} == {np.dtype(np.uint8), np.dtype(np.uint16)}
    assert any(((box[0, :2] + box[0, 2:]) < box[0, :2]).any() for box in boxes), "none overflows"
    assert min(int(box[0, :2].min()) for box in boxes) == 1
    assert any(box[0, 2:].min() == 0 for box in boxes)
    pool = {str(name[0]) for name in loadmat(folder / "pool.mat")["pool"].ravel()}
    assert pool == {name for name, image in truth.items() if image.split == "test"}
    rows = loadmat(folder / "test" / "train_test" / "TestG4000.mat")["TestG4000"].ravel()
    own = 0
    for row in rows:
        asked = row["Query"][0, 0]
        gallery = [str(name[0]) for name in row["Gallery"]["imname"].ravel()]
        empty = [box.size == 0 for box in row["Gallery"]["idlocate"].ravel()]
        assert empty == sorted(empty), "negatives come after the positives"
        assert not all(empty)
        assert set(gallery) | {str(asked["imname"][0])} == pool
        own += str(asked["imname"][0]) in gallery
    assert own == 1
    assert len(loadmat(folder / "Person.mat")["Person"].ravel()) > len(rows)
