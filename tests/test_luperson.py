"""LUPerson and LUPerson-NL: every form that copies come in, quiet traps and bad input."""

import multiprocessing
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import lmdb
import pytest
from releases import JPEG, list_samples, read, write_file

from pipeline.annotation import sample_key
from pipeline.errors import UserError
from pipeline.stores.store import Location
from sharding.datasets import ADAPTERS
from sharding.datasets.base import Listing
from sharding.plan import PlanConfig, make_plan
from sharding.source import Source

LUPERSON = {
    b"30_00_0292_00000238": JPEG,
    b"30_00_0292_00000240": b"2",
    b"34_01_0341_00001865": b"3",
}
NAMES = [key.decode() for key in LUPERSON]
NL = {
    b"00001_000007_0000125_00": JPEG,
    b"00001_000007_0000150_03": b"2",
    b"00002_433996_0000025_01": b"3",
}
NL_NAMES = [key.decode() for key in NL]


def release(root: Path, keys: object = None, records: dict[bytes, bytes] = LUPERSON) -> Path:
    (root / "lmdb").mkdir(parents=True)
    environment = lmdb.open(str(root / "lmdb"), map_size=1 << 26)
    with environment, environment.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)
    if keys is not None:
        (root / "keys.pkl").write_bytes(pickle.dumps(keys))
    return root


def plan_hash(listing: Listing) -> str:
    return make_plan(ADAPTERS["luperson"], "train", listing, PlanConfig()).hash


@pytest.mark.parametrize(
    "keys",
    [
        None,
        NAMES,
        NAMES[::-1],
        list(LUPERSON),
        {"keys": NAMES, "pids": [0, 1, 2], "vids": (5, 5, 6)},
        {"keys": tuple(LUPERSON), "pids": "nobody's"},
    ],
    ids=["no file", "str", "in another order", "bytes", "dict", "dict of others"],
)
def test_keys_come_in_several_forms(tmp_path: Path, keys: object) -> None:
    source = release(tmp_path, keys)
    listing = list_samples("luperson", source, "train")
    assert [sample.origin for sample in listing.samples] == sorted(NAMES)
    assert [sample.size_bytes for sample in listing.samples] == [len(JPEG), 1, 1]
    assert listing.samples[0].key == "luperson/train/30_00_0292_00000238"
    assert listing.samples[0].extra == {"country": "30", "city": "00", "video": "0292"}
    # Nobody is labelled: neither a video nor a pid of some copy's keys.pkl is a person.
    assert all(sample.persons[0].identity is None for sample in listing.samples)
    assert read("luperson", source, listing.samples[0].locator) == JPEG
    assert listing.found == {"images": 3, "videos": 2}


def test_keys_file_decides_what_is_an_image(tmp_path: Path) -> None:
    source = release(
        tmp_path, [*NAMES[:1], NAMES[0], "99_99_9999_99999999", "", "99_99_9999_99999999"]
    )
    listing = list_samples("luperson", source, "train")
    assert [sample.origin for sample in listing.samples] == NAMES[:1]
    assert [faulty.origin for faulty in listing.faulty] == ["", "99_99_9999_99999999"]
    assert listing.faulty[1].key == "luperson/train/99_99_9999_99999999"
    assert listing.excluded == {"not named in keys.pkl": 2}
    assert listing.found["images"] == 1
    assert listing.total == 5


def test_given_the_database_folder_reads_the_keys_beside_it(tmp_path: Path) -> None:
    source = release(tmp_path, NAMES[:2]) / "lmdb"
    listing = list_samples("luperson", source, "train")
    assert [sample.origin for sample in listing.samples] == NAMES[:2]
    assert read("luperson", source, listing.samples[0].locator) == JPEG


def test_keys_that_end_in_a_number_after_a_dot_stay_apart(tmp_path: Path) -> None:
    source = release(tmp_path, records={f"v000.{n:05d}".encode(): b"1" for n in range(60)})
    listing = list_samples("luperson", source, "train")
    plan = make_plan(ADAPTERS["luperson"], "train", listing, PlanConfig())
    assert (plan.samples, plan.excluded) == (60, {})


def test_an_image_ending_is_no_part_of_the_sample_key(tmp_path: Path) -> None:
    names = [f"30_00_0292_00000238{ending}" for ending in ("", ".jpg", ".JPEG", ".png")]
    assert {sample_key("luperson", "train", name) for name in names} == {
        f"luperson/train/{names[0]}"
    }


@pytest.mark.parametrize("root", ["lup/lmdb_300_30", "LUPerson/LUPerson"])
def test_known_folders_around_the_database(tmp_path: Path, root: str) -> None:
    release(tmp_path / root, NAMES[:2])
    assert len(list_samples("luperson", tmp_path, "train").samples) == 2


def test_keys_of_any_form(tmp_path: Path) -> None:
    records = {b"video:7/frame.1.jpg": b"1", b"caf\xe9": b"2", b"two\nlines": b"3"}
    source = release(tmp_path, list(records), records=records)
    listing = list_samples("luperson", source, "train")
    assert [read("luperson", source, s.locator) for s in listing.samples] == [b"2", b"3", b"1"]
    assert [sample.extra for sample in listing.samples] == [{}, {}, {}]
    with pytest.raises(FileNotFoundError):
        read("luperson", source, "lmdb/data.mdb\nnobody")


def test_the_database_opens_anew_in_a_forked_process(tmp_path: Path) -> None:
    source = release(tmp_path)
    locator = list_samples("luperson", source, "train").samples[0].locator
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read, ("luperson", source, locator)) == JPEG
    assert read("luperson", source, locator) == JPEG


def test_equal_wherever_it_lies(tmp_path: Path) -> None:
    """In an archive or a store the database is read in place, and plans are the same as from the folder."""
    folder = release(tmp_path / "folder", NAMES[:2])
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "lup.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in ("lmdb/data.mdb", "lmdb/lock.mdb", "keys.pkl"):
            archive.write(folder / file, f"LUPerson/{file}")
    with tarfile.open(tmp_path / "lup.tar", "w") as tar:
        tar.add(folder, "lmdb_300_30")
    store = f"memory://{tmp_path.name}"
    for file in ("lmdb/data.mdb", "keys.pkl"):
        Location(f"{store}/{file}").write((folder / file).read_bytes())
    whole = list_samples("luperson", folder, "train")
    for source in (tmp_path / "zipped", tmp_path / "lup.tar", store, f"{store}/lmdb"):
        listing = list_samples("luperson", source, "train")
        assert plan_hash(listing) == plan_hash(whole)
        assert read("luperson", source, listing.samples[0].locator) == JPEG


@pytest.mark.parametrize("folder", ["images", "LUPerson/crops", ""])
def test_unpacked_files(tmp_path: Path, folder: str) -> None:
    for name, data in zip(NAMES, LUPERSON.values()):
        write_file(tmp_path / "source" / folder / f"{name}.jpg", data)
    listing = list_samples("luperson", tmp_path / "source", "train")
    assert [sample.origin for sample in listing.samples] == [f"{name}.jpg" for name in NAMES]
    assert [sample.key for sample in listing.samples] == [f"luperson/train/{n}" for n in NAMES]
    assert listing.samples[2].extra == {"country": "34", "city": "01", "video": "0341"}
    assert listing.found == {"images": 3, "videos": 2}
    assert read("luperson", tmp_path / "source", listing.samples[0].locator) == JPEG
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in reversed(NAMES):
            archive.write(tmp_path / "source" / folder / f"{name}.jpg", f"any/{name}.jpg")
    packed = list_samples("luperson", tmp_path / "images.zip", "train")
    assert plan_hash(packed) == plan_hash(listing)
    assert read("luperson", tmp_path / "images.zip", packed.samples[0].locator) == JPEG


def test_unpacked_files_in_folders_keep_those_in_their_names(tmp_path: Path) -> None:
    for video in ("a/video1", "a/video10", "b/video1"):
        write_file(tmp_path / "images" / video / "000001.jpg", JPEG)
    origins = [sample.origin for sample in list_samples("luperson", tmp_path, "train").samples]
    assert origins == ["a/video1/000001.jpg", "a/video10/000001.jpg", "b/video1/000001.jpg"]


class Call:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_the_keys_file_is_never_executed(tmp_path: Path) -> None:
    source = release(tmp_path, ["30_00_0292_00000238", Call(tmp_path / "executed")])
    with pytest.raises(UserError, match=r"keys\.pkl: .*builds more than lists, dicts and text"):
        list_samples("luperson", source, "train")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "keys", [7, {"names": []}, [1, 2], [NAMES[0], None, 3.5], {"keys": "30_00"}]
)
def test_keys_that_are_none(tmp_path: Path, keys: object) -> None:
    with pytest.raises(UserError, match=r"keys\.pkl: expected a list of keys"):
        list_samples("luperson", release(tmp_path, keys), "train")


@pytest.mark.parametrize("name", ["luperson", "luperson_nl"])
def test_bad_databases(tmp_path: Path, name: str) -> None:
    records = {b"%04d" % i: b"x" * 10_000 for i in range(40)}
    keys = {"keys": list(records), "pids": list(range(40))}
    cut = release(tmp_path / "cut", keys, records)
    data = cut / "lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size * 9 // 10])
    with pytest.raises(UserError, match=r"data\.mdb cannot be read as an LMDB: .* reaches behind"):
        list_samples(name, cut, "train")
    page = release(tmp_path / "page", keys, records)
    (page / "lmdb" / "data.mdb").write_bytes(b"<html>")
    with pytest.raises(UserError, match="not an LMDB"):
        list_samples(name, page, "train")
    with pytest.raises(UserError, match=r"expected lmdb/data\.mdb with keys\.pkl"):
        list_samples(name, tmp_path, "train")


def test_a_record_that_is_damaged_later_is_a_fault(tmp_path: Path) -> None:
    source = release(tmp_path, records={b"%04d" % i: b"x" * 10_000 for i in range(40)})
    locator = list_samples("luperson", source, "train").samples[39].locator
    data = source / "lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size * 9 // 10])
    with pytest.raises(ValueError, match="reaches behind the end of the file"):
        multiprocessing.get_context("fork").Pool(1).apply(read, ("luperson", source, locator))


def test_samples_are_made_when_asked_for(tmp_path: Path) -> None:
    """Nothing is kept of a sample but its name and size, and both ways to get it agree."""
    records = {f"{i % 50:02d}_00_0001_{i:08d}".encode(): b"x" for i in range(70_000)}
    source = Source(str(release(tmp_path, sorted(records), records)))
    samples = ADAPTERS["luperson"].list_samples(source, "train").samples
    assert samples[0] is not samples[0]
    every = list(samples)
    assert len(samples) == len(every) == 70_000
    assert samples[-1] == every[69_999] == samples[69_999]
    assert samples[65_530:65_540] == every[65_530:65_540]
    with pytest.raises(IndexError):
        samples[70_000]


def test_nl_labels_are_a_trackers(tmp_path: Path) -> None:
    keys = {"keys": NL_NAMES[::-1], "pids": [433_996, 7, 7]}
    source = release(tmp_path, keys, NL)
    listing = list_samples("luperson_nl", source, "train")
    assert [sample.origin for sample in listing.samples] == NL_NAMES
    persons = [sample.persons[0] for sample in listing.samples]
    # Labels follow their keys, whatever the order of either; all are marked as noisy.
    assert [person.identity for person in persons] == ["noisy:7", "noisy:7", "noisy:433996"]
    assert all(person.tags == ("noisy",) for person in persons)
    assert listing.samples[1].extra["video"] == "00001"
    assert listing.samples[0].key == "luperson_nl/train/00001_000007_0000125_00"
    assert listing.found == {"images": 3, "identities": 2}
    assert read("luperson_nl", source, listing.samples[0].locator) == JPEG


def test_nl_labels_stay_with_their_keys_where_some_are_missing(tmp_path: Path) -> None:
    absent = "00000_000003_0000001_00"
    keys = {"keys": [NL_NAMES[2], absent, NL_NAMES[0]], "pids": [5, 3, 9]}
    listing = list_samples("luperson_nl", release(tmp_path, keys, NL), "train")
    assert {s.origin: s.persons[0].identity for s in listing.samples} == {
        NL_NAMES[0]: "noisy:9",
        NL_NAMES[2]: "noisy:5",
    }
    assert [faulty.origin for faulty in listing.faulty] == [absent]
    assert listing.excluded == {"not named in keys.pkl": 1}
    assert listing.found == {"images": 2, "identities": 2}


@pytest.mark.parametrize(
    ("keys", "records", "complaint"),
    [
        (None, NL, r"keys\.pkl, which has its labels, is missing"),
        (NL_NAMES, NL, r"no `pids`, .* the name is `luperson`"),
        ({"keys": NAMES, "vids": [1, 1, 2]}, LUPERSON, r"is not LUPerson-NL: .* no `pids`"),
        ({"keys": NAMES, "pids": [0, 1, 2]}, LUPERSON, "keys as LUPerson's, which nobody labelled"),
        ({"keys": NL_NAMES, "pids": [1, 2]}, NL, "a number, from 0, for each of its 3 keys"),
        ({"keys": NL_NAMES, "pids": [1, 2, -1]}, NL, "a number, from 0"),
        ({"keys": NL_NAMES, "pids": [1, 2, 2.5]}, NL, "a number, from 0"),
        ({"keys": NL_NAMES, "pids": [[1], [2, 3], []]}, NL, "a number, from 0"),
        ({"keys": [*NL_NAMES, NL_NAMES[0]], "pids": [1, 2, 3, 4]}, NL, "1 keys more than once"),
    ],
)
def test_nl_needs_one_label_a_key(
    tmp_path: Path, keys: object, records: dict[bytes, bytes], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        list_samples("luperson_nl", release(tmp_path, keys, records), "train")
