"""A release where it lies: the same files and bytes, and so the same shards, however it is packed."""

import io
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from object_store import s3_environment, s3_server
from packing import KINDS, cut, files_of, tarred, unpacked, zipped
from releases import list_samples, read, write_file

import sharding.source
from pipeline.errors import UserError
from sharding.datasets import ADAPTERS
from sharding.datasets.base import SourceSample
from sharding.miniature import TruthImage
from sharding.plan import PlanConfig, make_plan
from sharding.source import Source, require

RNG = random.Random(0)
FILES = {
    "A/b/0000.jpg": RNG.randbytes(70_000),
    "A/b/0001.jpg": RNG.randbytes(9),
    "A/c d/empty.txt": b"",
    "A/c d/list.txt": b"the same words again and again\n" * 400_000,
    "A/odd/two\nlines.jpg": b"newline",
    "A/odd/what?.jpg": b"question",
    "A/odd/a::b.jpg": b"colons",
    "A/odd/grüße, 北京.jpg": b"unicode",
    f"A/{'long' * 50}/{'name' * 50}.jpg": b"long",
    "top.json": b"{}",
}
SAFE = {name: data for name, data in FILES.items() if not {"?", ":", "\n"} & set(name)}
"""Names that the test's store takes as they are."""


def contents(source: Source, under: str = "", suffix: str = "") -> dict[str, bytes]:
    return {p: source.read(f.locator) for p, f in source.files(under, suffix).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_archive_reads_as_a_folder(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path, FILES)
    source = Source(str(tmp_path))
    names = set(files_of(tmp_path)) - set(FILES)  # the archives themselves
    assert {n: d for n, d in contents(source).items() if n not in names} == FILES
    assert {name: file.size for name, file in source.files("A").items()} == {
        name: len(data) for name, data in FILES.items() if name.startswith("A/")
    }
    assert list(source.files("A/b/", "1.jpg")) == ["A/b/0001.jpg"]
    for path in ("A", "A/b", "A/b/0000.jpg", "top.json"):
        assert source.has(path)
    for path in ("A/b/0000", "A/", "..", "A/../top.json", "/top.json", "nowhere"):
        assert source.find(path) is None
    assert source.find("A/odd/two\nlines.jpg") == source.files()["A/odd/two\nlines.jpg"]
    assert not source.has("B")
    assert source.describe("A/b").startswith("holds 0000.jpg, 0001.jpg")
    assert source.describe("top.json") == "is not a folder"


@pytest.mark.parametrize("kind", KINDS)
def test_any_part_of_a_file_can_be_read(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path, FILES)
    source, rng = Source(str(tmp_path)), random.Random(1)
    for name in ("A/c d/list.txt", "A/b/0000.jpg", "A/c d/empty.txt", "A/c d/list.txt"):
        data, locator = FILES[name], source.files()[name].locator
        ranges, file = source.ranges(locator), source.open(locator)
        assert ranges.size == len(data)
        for _ in range(30):
            start, end = (rng.randrange(-(-len(data) * 11 // 10) + 1) for _ in range(2))
            assert ranges.read(start, end) == data[start:end]
            assert file.seek(start) == start
            assert file.read(77) == data[start : start + 77]
        file.seek(-1 if data else 0, io.SEEK_END)
        assert file.read() == data[-1:]


@pytest.mark.parametrize("kind", KINDS)
def test_threads_read_at_once(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path, FILES)
    source = Source(str(tmp_path))
    wanted = [name for name in FILES for _ in range(8)]
    random.Random(2).shuffle(wanted)
    locators = {name: file.locator for name, file in source.files().items()}
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda name: source.read(locators[name]), wanted))
    assert found == [FILES[name] for name in wanted]


def test_a_compressed_stream_keeps_few_places_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.ranges.SPACING", 10_000)
    monkeypatch.setattr("sharding.ranges.MOST_STATES", 16)
    write_file(tmp_path / "a.zip", zipped(FILES))
    source, data = Source(str(tmp_path)), FILES["A/c d/list.txt"]
    ranges = source.ranges(source.files()["A/c d/list.txt"].locator)
    for start in (len(data) - 9, 5, len(data) // 2):
        assert ranges.read(start, start + 50_000) == data[start : start + 50_000]
    assert len(ranges._states) <= 16  # type: ignore[attr-defined]


def test_a_file_that_is_there_comes_before_those_in_archives(tmp_path: Path) -> None:
    write_file(tmp_path / "b.zip", zipped({"A/1.txt": b"zip", "A/2.txt": b"zip"}))
    write_file(tmp_path / "a.tar", tarred({"A/2.txt": b"tar", "A/3.txt": b"tar"}))
    write_file(tmp_path / "A/1.txt", "folder")
    found = contents(Source(str(tmp_path)), "A")
    assert found == {"A/1.txt": b"folder", "A/2.txt": b"tar", "A/3.txt": b"tar"}


def test_one_archive_is_a_source(tmp_path: Path) -> None:
    unpacked(tmp_path, {"a.zip": zipped(FILES), "b.txt": b"not seen"})
    source = Source(str(tmp_path / "a.zip"))
    assert contents(source) == FILES
    assert source.describe() == "holds A, top.json"


def test_hidden_files_are_not_seen(tmp_path: Path) -> None:
    hidden = {".a": b"", "b/.c": b"", "b/.d/e": b"", "__MACOSX/._f": b"", "b/g": b""}
    unpacked(
        tmp_path / "folder", {name: data for name, data in hidden.items() if "MAC" not in name}
    )
    write_file(tmp_path / "packed/a.zip", zipped(hidden))
    assert list(contents(Source(str(tmp_path / "folder")))) == ["b/g"]
    assert list(contents(Source(str(tmp_path / "packed/a.zip")))) == ["b/g"]


def test_an_archive_may_be_replaced_and_may_vanish(tmp_path: Path) -> None:
    for data in (b"first", b"other"):
        write_file(tmp_path / "new", tarred({"a.txt": data}))
        (tmp_path / "new").replace(tmp_path / "a.tar")
        source = Source(str(tmp_path))
        locator = source.files("a.txt".rpartition("/")[0], ".txt")["a.txt"].locator
        assert source.read(locator) == data
    (tmp_path / "a.tar").unlink()
    with pytest.raises(OSError, match=r"a\.tar has gone") as caught:
        source.read(locator)
    assert not isinstance(caught.value, FileNotFoundError), "the sample would be quarantined"


def test_folders_that_link_in_a_circle_end(tmp_path: Path) -> None:
    unpacked(tmp_path, {"a/1.jpg": b"", "b/2.jpg": b""})
    (tmp_path / "a/back").symlink_to(tmp_path)
    (tmp_path / "b/across").symlink_to(tmp_path / "a")
    (tmp_path / "b/nowhere").symlink_to(tmp_path / "gone")
    found = Source(str(tmp_path)).files("", ".jpg")
    assert {"a/1.jpg", "b/2.jpg", "b/across/1.jpg"} <= set(found)
    assert len(found) < 10


@pytest.mark.parametrize("packed", [True, False])
def test_a_name_that_is_no_text_is_named(tmp_path: Path, packed: bool) -> None:
    data = tarred({"a/caf\udce9.jpg": b"", "b/x.jpg": b""})
    if packed:
        write_file(tmp_path / "a.tar", data)
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(tmp_path, filter="data")
    source = Source(str(tmp_path))
    assert list(source.files("b")) == ["b/x.jpg"]
    with pytest.raises(UserError, match=r"caf\\udce9\.jpg' is not UTF-8: rename it") as caught:
        source.files("a")
    assert str(caught.value).isascii()


@pytest.mark.parametrize("endings", [("ab", "ac"), ("aa", "ac"), ("001", "003"), ("002",)])
def test_a_missing_part_is_noticed(tmp_path: Path, endings: tuple[str, ...]) -> None:
    unpacked(tmp_path, cut("lup.tar", tarred(FILES), endings))
    with pytest.raises(UserError, match=r"lup\.tar is in parts and not all are there: found lup"):
        Source(str(tmp_path)).files()


def test_what_cannot_be_read_in_place_is_named_when_something_is_missing(tmp_path: Path) -> None:
    for name in ("a.7z", "b.rar", "c.tar.bz2", "d.7z.001", "e.tar.xz", "f.z01"):
        write_file(tmp_path / name, "")
    locked = bytearray(zipped({"lists/x.txt": b"x"}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(signature) + flags] |= 1
    write_file(tmp_path / "locked.zip", bytes(locked))
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("lists/y.txt", "y")
    with pytest.raises(UserError) as caught:
        require(Source(str(tmp_path)), "lists/x.txt", "Copy it.")
    message = str(caught.value)
    for name in ("a.7z", "b.rar", "c.tar.bz2", "d.7z.001", "e.tar.xz", "f.z01"):
        assert f"{name} cannot be read in place: unpack it" in message
    assert "locked.zip is encrypted: unpack it with its password" in message
    assert "lzma.zip is packed by an unusual method: unpack it" in message


# --- the same shards from every form of a release -------------------------------------------------


def _crowdhuman(release: Path, out: Path) -> None:
    images = files_of(release, "Images")
    third = len(images) // 3
    for number in range(3):
        part = dict(
            list(images.items())[number * third : (None if number == 2 else number * third + third)]
        )
        write_file(out / f"CrowdHuman_train{number + 1:02d}.zip", zipped(part, zipfile.ZIP_STORED))
    for name in ("annotation_train.odgt", "annotation_val.odgt"):
        write_file(out / name, (release / name).read_bytes())


def _ecp(release: Path, out: Path, inside: str = "ECP/") -> None:
    for time in ("day", "night"):
        for kind in ("img", "labels"):
            for part in ("train", "val"):
                files = files_of(release / "ECP", f"{time}/{kind}/{part}")
                packed = zipped({f"{inside}{name}": data for name, data in files.items()})
                write_file(out / f"ECP_{time}_{kind}_{part}.zip", packed)


def _msmt17(release: Path, out: Path, version: str = "MSMT17_V1.tar.gz") -> None:
    files = files_of(release)
    if "V2" in version:
        renames = {"V1/train": "V2/mask_train_v2", "V1/test": "V2/mask_test_v2", "V1/": "V2/"}
        for old, new in renames.items():
            files = {name.replace(old, new): data for name, data in files.items()}
    KINDS["tar.gz"](out, files)
    (out / "a.tar.gz").rename(out / version)


def _cuhk03(release: Path, out: Path) -> None:
    write_file(out / "cuhk03_release.zip", zipped(files_of(release, "cuhk03_release")))
    for name in release.glob("*.mat"):
        write_file(out / name.name, name.read_bytes())


PACKED = {
    "crowdhuman": [("train", _crowdhuman)],
    "ecp": [
        ("day_train", _ecp),
        ("night_val", lambda release, out: _ecp(release, out, inside="")),
    ],
    "msmt17": [
        ("train_val", _msmt17),
        ("query", lambda release, out: _msmt17(release, out, "MSMT17_V2.tar.gz")),
    ],
    "cuhk03": [("labelled_train", _cuhk03)],
}


@pytest.mark.parametrize(
    ("name", "split", "pack"), [(n, *form) for n, forms in PACKED.items() for form in forms]
)
def test_a_packed_release_gives_the_same_plan_and_bytes(
    miniature: tuple[Path, list[TruthImage]], tmp_path: Path, name: str, split: str, pack: object
) -> None:
    release = miniature[0] / name
    pack(release, tmp_path)  # type: ignore[operator]
    plans = [
        make_plan(ADAPTERS[name], split, list_samples(name, root, split), PlanConfig())
        for root in (release, tmp_path)
    ]
    assert plans[0].hash == plans[1].hash
    samples = [list(list_samples(name, root, split).samples) for root in (release, tmp_path)]
    assert without_locators(samples[0]) == without_locators(samples[1])
    for loose, packed in zip(*samples, strict=True):
        assert read(name, release, loose.locator) == read(name, tmp_path, packed.locator)


def without_locators(samples: list[SourceSample]) -> list[SourceSample]:
    return [replace(sample, locator="") for sample in samples]


# --- from a store -----------------------------------------------------------------------------------


STORED_KINDS = ("folder", "zip", "tar", "tar.gz", "parts of a zip")


@pytest.fixture(scope="module")
def bucket(
    tmp_path_factory: pytest.TempPathFactory, miniature: tuple[Path, list[TruthImage]]
) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("store") / "bucket"
    for kind in STORED_KINDS:
        KINDS[kind](root / kind, SAFE)
    unpacked(root / "odd", {"a/what?.jpg": b"", "b/x.jpg": b""})
    for name in ("cuhk03", "crowdhuman"):
        PACKED[name][0][1](miniature[0] / name, root / name)
    with s3_server(root.parent) as port, s3_environment(port):
        yield root


@pytest.mark.parametrize("kind", STORED_KINDS)
def test_a_store_reads_as_a_folder(bucket: Path, kind: str) -> None:
    source = Source(f"s3://bucket/{kind}")
    names = set(files_of(bucket / kind)) - set(SAFE)
    assert {n: d for n, d in contents(source).items() if n not in names} == SAFE
    assert source.find("A/b/0001.jpg") == source.files("A/b")["A/b/0001.jpg"]
    assert source.find("A/b/0002.jpg") is None
    assert source.has("A/b")
    assert not source.has("A/x")
    assert source.describe("A/b") == "holds 0000.jpg, 0001.jpg"
    ranges = source.ranges(source.files("A/b")["A/b/0000.jpg"].locator)
    assert ranges.read(5, 2000) == SAFE["A/b/0000.jpg"][5:2000]


@pytest.mark.usefixtures("bucket")
def test_a_name_that_no_url_can_spell_is_named() -> None:
    source = Source("s3://bucket/odd")
    assert list(source.files("b")) == ["b/x.jpg"]
    with pytest.raises(UserError, match=r"what\?\.jpg': no URL can name it"):
        source.files("a")


@pytest.mark.usefixtures("bucket")
def test_cuhk03_and_crowdhuman_from_a_store(
    miniature: tuple[Path, list[TruthImage]],
) -> None:
    for name, split in (("cuhk03", "labelled_train"), ("crowdhuman", "val")):
        stored = list_samples(name, f"s3://bucket/{name}", split).samples
        loose = list_samples(name, miniature[0] / name, split).samples
        assert without_locators(list(stored)) == without_locators(list(loose))
        data = read(name, f"s3://bucket/{name}", stored[0].locator)
        assert data == read(name, miniature[0] / name, loose[0].locator)


class Asked:
    """A store in memory, which notes what it is asked for and how often at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
        self.read: Counter[str] = Counter()
        self.sizes: list[str] = []
        self.at_once = self._now = 0
        self._answer = MemoryFileSystem.cat_file
        monkeypatch.setattr(MemoryFileSystem, "store", {})
        monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
        MemoryFileSystem().put(str(files), "/release", recursive=True)
        monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: self._cat(*a, **k))
        monkeypatch.setattr(MemoryFileSystem, "size", lambda fs, path: self._size(fs, path))

    def _cat(self, fs: MemoryFileSystem, path: str, **limits: int) -> bytes:
        self.read[path] += 1
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        sleep(0.02)
        self._now -= 1
        return self._answer(fs, path, **limits)

    def _size(self, fs: MemoryFileSystem, path: str) -> int:
        self.sizes.append(path)
        return int(fs.info(path)["size"])


@pytest.mark.parametrize(("name", "split"), [("ecp", "day_train"), ("prw", "test")])
def test_labels_in_a_store_take_a_request_each_and_are_read_side_by_side(
    name: str,
    split: str,
    miniature: tuple[Path, list[TruthImage]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = miniature[0] / name
    asked = Asked(monkeypatch, release)
    stored = list_samples(name, "memory://release", split)
    assert replace(stored, samples=()) == replace(list_samples(name, release, split), samples=())
    loose = list_samples(name, release, split).samples
    assert without_locators(list(stored.samples)) == without_locators(list(loose))
    for one, other in zip(stored.samples, loose, strict=True):
        assert read(name, "memory://release", one.locator) == read(name, release, other.locator)
    assert asked.at_once > 1
    assert set(asked.read.values()) == {1}
    assert asked.sizes == []


def test_a_file_of_a_store_too_large_to_be_read_whole_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "small", b"12345678")
    write_file(tmp_path / "large", b"123456789")
    asked = Asked(monkeypatch, tmp_path)
    monkeypatch.setattr(sharding.source, "MOST_BYTES", 8)
    source = Source("memory://release")
    files = source.files()
    assert files["large"] == source.find("large")
    assert source.read(files["small"].locator) == b"12345678"
    with pytest.raises(ValueError, match="9 bytes, more than 8"):
        source.read(files["large"].locator)
    assert [*asked.read] == ["/release/small"]
    assert source.ranges(files["large"].locator).read(7, 99) == b"89"
    MemoryFileSystem().pipe("/release/small", b"grown since it was listed")
    with pytest.raises(ValueError, match="25 bytes, more than 8"):
        source.read(files["small"].locator)
