"""MSMT17 and CUHK03: parsing rules, quiet traps and bad input on hand-made releases."""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from releases import JPEG, list_samples, read, write_file
from scipy.io import savemat

from pipeline.errors import UserError
from sharding.datasets import ADAPTERS
from sharding.datasets.base import WHOLE_CROP

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
        write_file(root / f"list_{name}.txt", newline.join(lines) + newline)
        for line in lines:
            half = test if name in ("query", "gallery") else train
            write_file(root / half / line.split()[0], JPEG)
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
    assert read("msmt17", source, listing.samples[0].locator) == JPEG


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
    assert read("msmt17", source, listing.samples[2].locator) == JPEG


def test_msmt17_counts_repeated_and_missing_images(tmp_path: Path) -> None:
    source = msmt17(tmp_path)
    path = MSMT17_LISTS["train"][1].split()[0]
    (source / "train" / path).unlink()
    write_file(source / "list_val.txt", MSMT17_LISTS["train"][0])
    listing = list_samples("msmt17", source, "train_val")
    assert len(listing.samples) == 1
    assert [faulty.origin for faulty in listing.faulty] == [f"train/{path}"]
    assert listing.excluded == {"listed twice": 1}
    assert listing.found == {"images": 1, "identities": 1}
    assert listing.total == 3


def test_msmt17_a_key_does_not_depend_on_the_file_being_there(tmp_path: Path) -> None:
    source = msmt17(tmp_path)
    whole = list_samples("msmt17", source, "train")
    (source / "train" / MSMT17_LISTS["train"][1].split()[0]).unlink()
    (faulty,) = list_samples("msmt17", source, "train").faulty
    assert faulty.key == whole.samples[1].key
    assert faulty.origin == whole.samples[1].origin


def test_msmt17_skips_blank_lines(tmp_path: Path) -> None:
    source = msmt17(tmp_path)
    lists = source / "list_train.txt"
    lists.write_text(lists.read_text().replace("\n", "\n\n"))
    assert len(list_samples("msmt17", source, "train").samples) == 2


def test_msmt17_does_not_leave_its_folder(tmp_path: Path) -> None:
    source = msmt17(tmp_path / "release")
    write_file(tmp_path / "0000_000_01_0303morning_0015_0.jpg", b"secret")
    escape = "../../0000_000_01_0303morning_0015_0.jpg"
    write_file(source / "list_train.txt", f"{escape} 0\n")
    (faulty,) = list_samples("msmt17", source, "train").faulty
    assert faulty.origin == f"train/{escape}"


def test_msmt17_bad_input(tmp_path: Path) -> None:
    source = msmt17(tmp_path)
    write_file(source / "list_val.txt", "0000/0000_001_15_0114afternoon_0015_1.jpg\n")
    with pytest.raises(UserError, match=r"list_val\.txt, line 1: expected an image path"):
        list_samples("msmt17", source, "train_val")
    write_file(source / "list_val.txt", "0000/0000_c1s1_000151_01.jpg 0\n")
    with pytest.raises(UserError, match=r"line 1: .* is not named as MSMT17"):
        list_samples("msmt17", source, "train_val")
    write_file(source / "list_val.txt", "0000/0000_001_15_0114afternoon_0015_1.jpg " + "1" * 5000)
    with pytest.raises(UserError, match=r"list_val\.txt, line 1: expected an image path"):
        list_samples("msmt17", source, "train_val")
    write_file(source / "list_val.txt", b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list_val\.txt, near line 1: not UTF-8"):
        list_samples("msmt17", source, "train_val")
    (source / "list_val.txt").unlink()
    with pytest.raises(UserError, match=r"list_val\.txt is missing"):
        list_samples("msmt17", source, "train_val")
    (source / "test").rename(source / "rest")
    with pytest.raises(UserError, match="test is missing"):
        list_samples("msmt17", source, "query")


class Cuhk03Release:
    """A tiny cuhk-03.mat as MATLAB 7.3 lays it out, and one 767/700 configuration a variant."""

    names = ("1_001_1_01.png", "1_001_2_06.png", "1_002_1_02.png", "2_001_2_10.png")
    labels = (1, 1, 2, 844)
    people = (3, 2)

    def __init__(self, root: Path) -> None:
        self.mat = root / "cuhk03_release" / "cuhk-03.mat"
        self.mat.parent.mkdir(parents=True)
        self.source = root
        rng = np.random.default_rng(0)
        self.pixels: dict[str, NDArray[np.uint8]] = {}
        with h5py.File(self.mat, "w", userblock_size=512) as file:
            for variant in ("labeled", "detected"):
                self._write_variant(file, variant, rng)
        self.configure("labeled")
        self.configure("detected", train_idx=[1, 2], query_idx=[4], gallery_idx=[3])

    def _write_variant(self, file: h5py.File, variant: str, rng: np.random.Generator) -> None:
        empty = file.create_dataset(f"#refs#/{variant}", data=np.zeros(2, np.uint64))
        empty.attrs["MATLAB_empty"] = np.uint8(1)
        pairs = []
        for pair, people in enumerate(self.people, start=1):
            cells = np.full((10, people), empty.ref, dtype=h5py.ref_dtype)
            for name in self.names:
                number, row, _, column = (int(part) for part in name[:-4].split("_"))
                if number == pair:
                    pixels = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
                    self.pixels[f"{variant}/{name}"] = pixels
                    data = file.create_dataset(
                        f"#refs#/{variant}_{name}", data=pixels.transpose(2, 1, 0)
                    )
                    cells[column - 1, row - 1] = data.ref
            pairs.append(file.create_dataset(f"#refs#/{variant}_pair_{pair}", data=cells).ref)
        file.create_dataset(variant, data=np.array([pairs], dtype=h5py.ref_dtype))

    def configure(self, variant: str, **changes: Any) -> None:
        filelist = np.empty((len(self.names), 1), object)
        filelist[:, 0] = [np.array([name]) for name in changes.pop("names", self.names)]
        config = {
            "filelist": filelist,
            "labels": np.array(self.labels, np.uint16)[:, None],
            "camId": np.array([int(name[6]) for name in self.names], np.uint8)[:, None],
            "train_idx": [1, 2],
            "query_idx": [3],
            "gallery_idx": [4],
        } | changes
        config = {name: value for name, value in config.items() if value is not None}
        for name in ("train_idx", "query_idx", "gallery_idx"):
            config[name] = np.array(config[name], np.uint16)[:, None]
        path = self.source / f"cuhk03_new_protocol_config_{variant}.mat"
        savemat(path, config)


def test_cuhk03_indices_count_from_one_and_crops_stand_upright(tmp_path: Path) -> None:
    release = Cuhk03Release(tmp_path)
    listing = list_samples("cuhk03", release.source, "labelled_train")
    assert [sample.extra["name"] for sample in listing.samples] == list(release.names[:2])
    assert [sample.persons[0].identity for sample in listing.samples] == ["person:0001"] * 2
    assert [sample.persons[0].camera for sample in listing.samples] == ["1:1", "1:2"]
    assert [sample.persons[0].extra["view"] for sample in listing.samples] == [1, 2]
    assert listing.samples[0].expected_size == (5, 7)
    assert listing.samples[0].size_bytes == 5 * 7 * 3
    for sample in listing.samples:
        png = read("cuhk03", release.source, sample.locator)
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(pixels, release.pixels[f"labeled/{sample.extra['name']}"])
        assert png == read("cuhk03", release.source, sample.locator)


def test_cuhk03_variants_share_names_but_not_keys(tmp_path: Path) -> None:
    release = Cuhk03Release(tmp_path)
    listings = [
        list_samples("cuhk03", release.source, split) for split in ADAPTERS["cuhk03"].splits
    ]
    keys = [sample.key for listing in listings for sample in listing.samples]
    assert len(keys) == len(set(keys)) == 8
    assert "cuhk03/detected_query/2_001_2_10" in keys
    labelled, detected = listings[0].samples[0], listings[3].samples[0]
    assert labelled.persons[0].identity == detected.persons[0].identity
    images = [read("cuhk03", release.source, sample.locator) for sample in (labelled, detected)]
    assert images[0] != images[1]


def test_cuhk03_given_the_release_folder_itself(tmp_path: Path) -> None:
    release = Cuhk03Release(tmp_path)
    config = tmp_path / "cuhk03_new_protocol_config_labeled.mat"
    with pytest.raises(UserError, match=r"is not in .*cuhk03_release.*name the folder that holds"):
        list_samples("cuhk03", release.mat.parent, "labelled_train")
    config.rename(release.mat.parent / config.name)
    listing = list_samples("cuhk03", release.mat.parent, "labelled_train")
    assert listing.samples[0].origin == "cuhk-03.mat:labeled/1/1/1"
    assert read("cuhk03", release.mat.parent, listing.samples[0].locator)


@pytest.mark.parametrize("name", ["1_003_1_01.png", "1_009_1_01.png", "9_001_1_01.png"])
def test_cuhk03_empty_and_absent_cells_are_missing(tmp_path: Path, name: str) -> None:
    release = Cuhk03Release(tmp_path)
    release.configure("labeled", names=(name, *release.names[1:]))
    listing = list_samples("cuhk03", release.source, "labelled_train")
    pair, row = int(name[0]), int(name[2:5])
    (faulty,) = listing.faulty
    assert faulty.key == f"cuhk03/labelled_train/{name.removesuffix('.png')}"
    assert faulty.origin == f"cuhk-03.mat:labeled/{pair}/{row}/1"
    assert len(listing.samples) == 1
    assert listing.found == {"images": 1, "identities": 1}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train_idx": [0, 1]}, "outside of 1 to 4"),
        ({"train_idx": [1, 5]}, "outside of 1 to 4"),
        ({"train_idx": [1, 3]}, "in two of train, query, gallery"),
        ({"train_idx": [1, 1]}, "in one of them twice"),
        ({"labels": None}, "'labels'"),
        ({"labels": np.array([["a"], ["b"], ["c"], ["d"]])}, "expected the MATLAB 5 file"),
        ({"camId": np.ones((3, 1), np.uint8)}, "expected the MATLAB 5 file"),
        ({"camId": np.full((4, 1), 2, np.uint8)}, "contradicts itself or its camId 2"),
        ({"names": ("1_001_1_06.png",) * 4}, "contradicts itself"),
        ({"names": ("0001_c1_1.png",) * 4}, "is not named as CUHK03"),
    ],
)
def test_cuhk03_refuses_an_unsound_protocol(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    release = Cuhk03Release(tmp_path)
    release.configure("labeled", **changes)
    with pytest.raises(UserError, match=complaint) as caught:
        list_samples("cuhk03", release.source, "labelled_train")
    assert "cuhk03_new_protocol_config_labeled.mat" in str(caught.value)


def cuhk03_np(root: Path) -> Path:
    for variant, folder, name in (
        ("labeled", "bounding_box_train", "0001_c1_1.png"),
        ("labeled", "bounding_box_train", "0012_c2_6.png"),
        ("labeled", "query", "0002_c1_3.jpg"),
        ("labeled", "bounding_box_test", "0002_c2_8.png"),
        ("detected", "bounding_box_train", "0001_c1_1.png"),
    ):
        write_file(root / variant / folder / name, f"{variant} {name}")
    return root


@pytest.mark.parametrize("inside", [".", "cuhk03-np"])
def test_cuhk03_np_names_the_people_as_the_config_does(tmp_path: Path, inside: str) -> None:
    cuhk03_np(tmp_path / inside)
    listing = list_samples("cuhk03", tmp_path, "labelled_train")
    assert [sample.key for sample in listing.samples] == [
        "cuhk03/labelled_train/0001_c1_1",
        "cuhk03/labelled_train/0012_c2_6",
    ]
    assert listing.samples[0].origin == "labeled/bounding_box_train/0001_c1_1.png"
    persons = [sample.persons[0] for sample in listing.samples]
    assert [person.identity for person in persons] == ["person:0001", "person:0012"]
    assert [(person.camera, person.extra["view"]) for person in persons] == [("1", 1), ("2", 2)]
    data = read("cuhk03", tmp_path, listing.samples[1].locator)
    assert data == b"labeled 0012_c2_6.png"
    (query,) = list_samples("cuhk03", tmp_path, "labelled_query").samples
    (gallery,) = list_samples("cuhk03", tmp_path, "labelled_gallery").samples
    assert query.persons[0].identity == gallery.persons[0].identity == "person:0002"
    (detected,) = list_samples("cuhk03", tmp_path, "detected_train").samples
    assert read("cuhk03", tmp_path, detected.locator) == b"detected 0001_c1_1.png"


def test_cuhk03_np_counts_other_files_and_says_what_is_not_there(tmp_path: Path) -> None:
    source = cuhk03_np(tmp_path)
    write_file(source / "labeled/bounding_box_train/1_001_1_01.png", JPEG)
    write_file(source / "labeled/bounding_box_train/Thumbs.db", JPEG)
    listing = list_samples("cuhk03", source, "labelled_train")
    assert listing.excluded == {"not named as CUHK03-NP names its images": 1}
    with pytest.raises(UserError, match=r"detected/query does not exist: .*0001_c1_1\.png"):
        list_samples("cuhk03", source, "detected_query")


def test_cuhk03_takes_the_mat_file_if_there_are_folders_too(tmp_path: Path) -> None:
    release = Cuhk03Release(tmp_path)
    cuhk03_np(tmp_path)
    listing = list_samples("cuhk03", tmp_path, "labelled_train")
    assert listing.samples[0].origin == "cuhk-03.mat:labeled/1/1/1"
    assert len(listing.samples) == len(release.names[:2])


def test_cuhk03_a_damaged_crop_costs_one_sample(tmp_path: Path) -> None:
    release = Cuhk03Release(tmp_path)
    with h5py.File(release.mat, "r+") as file:
        pixels = np.zeros((3, 50, 70), np.uint8)
        reference = file.create_dataset(
            "#refs#/packed", data=pixels, chunks=pixels.shape, compression="gzip"
        )
        start = reference.id.get_chunk_info(0).byte_offset
        pair = file[file["labeled"][0, 0]]
        pair[0, 0] = reference.ref
        pair[5, 0] = file["labeled"].ref
    with release.mat.open("r+b") as raw:
        raw.seek(start)
        raw.write(bytes(20))
    listing = list_samples("cuhk03", release.source, "labelled_train")
    assert [faulty.reason for faulty in listing.faulty] == ["missing from the source"]
    with pytest.raises(ValueError, match="damaged"):
        read("cuhk03", release.source, listing.samples[0].locator)


def test_cuhk03_bad_files(tmp_path: Path) -> None:
    release = Cuhk03Release(tmp_path / "whole")
    config = release.source / "cuhk03_new_protocol_config_labeled.mat"
    config.write_bytes(release.mat.read_bytes())
    with pytest.raises(UserError, match="expected the MATLAB 5 file"):
        list_samples("cuhk03", release.source, "labelled_train")
    config.unlink()
    with pytest.raises(UserError, match=r"config_labeled\.mat is not in .* nor in "):
        list_samples("cuhk03", release.source, "labelled_train")
    for name, content, complaint in (
        ("page", b"\n<!DOCTYPE html><html>Sign in</html>", r"cuhk-03\.mat in .* found a web page"),
        ("other", b"MATLAB 5.0 MAT-file", "starts with b'MATLAB 5.0"),
        ("cut", release.mat.read_bytes()[:4000], "copy or unpack it again"),
    ):
        source = tmp_path / name
        write_file(source / "cuhk-03.mat", content)
        with pytest.raises(UserError, match=complaint):
            list_samples("cuhk03", source, "labelled_train")
    with h5py.File(tmp_path / "page" / "cuhk-03.mat", "w") as file:
        file["labeled"] = [1, 2, 3]
    with pytest.raises(UserError, match=r"no cell array 'labeled' \(it holds labeled\)"):
        list_samples("cuhk03", tmp_path / "page", "labelled_train")
    with pytest.raises(UserError, match=r"expected cuhk03_release/cuhk-03\.mat"):
        list_samples("cuhk03", tmp_path, "labelled_train")
