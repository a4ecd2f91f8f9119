"""Archives that are damaged or made to do harm: a paragraph or a bad sample, soon and in little memory."""

import gzip
import io
import random
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packing import KINDS, in_streams, member, tarred, tarred_members, zeros, zipped
from releases import write_file

from pipeline.errors import UserError
from sharding import archive, ranges
from sharding.source import Source

RNG = random.Random(0)
FILES = {f"A/{i:03d}.jpg": RNG.randbytes(RNG.randrange(1, 3000)) for i in range(12)}
FILES["A/list.txt"] = b"word " * 2000


@contextmanager
def bounded(seconds: float, megabytes: int) -> Iterator[None]:
    tracemalloc.start()
    begin = time.process_time()
    try:
        yield
    finally:
        taken, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < megabytes << 20
    assert taken < seconds


def contents(root: Path) -> dict[str, bytes | None]:
    """Bytes by path; None: a damaged member, to be quarantined."""
    source = Source(str(root))
    found: dict[str, bytes | None] = {}
    for path, file in source.files("A").items():
        try:
            found[path] = source.read(file.locator)
        except ValueError:
            found[path] = None
    return found


# --- made to do harm ------------------------------------------------------------------------------


def test_a_tars_links_devices_and_names_that_leave_the_folder_are_no_members(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    harmless = [("A/x.jpg", tarfile.REGTYPE), ("./A//y.jpg", tarfile.AREGTYPE)]
    harmful = [
        ("A/link.jpg", tarfile.SYMTYPE),
        ("A/hard.jpg", tarfile.LNKTYPE),
        ("A/null.jpg", tarfile.CHRTYPE),
        ("A/disk.jpg", tarfile.BLKTYPE),
        ("A/pipe.jpg", tarfile.FIFOTYPE),
        ("/A/absolute.jpg", tarfile.REGTYPE),
        ("A/../../A/up.jpg", tarfile.REGTYPE),
        ("A\\back.jpg", tarfile.REGTYPE),
        ("A/folder.jpg", tarfile.DIRTYPE),
    ]
    members = (
        (member(name, type=kind, linkname=str(secret)), b"") for name, kind in harmless + harmful
    )
    write_file(tmp_path / "release/a.tar", tarred_members(members))
    source = Source(str(tmp_path / "release"))
    assert sorted(source.files("A")) == ["A/x.jpg", "A/y.jpg"]
    assert r"'A\\back.jpg' of" in source.describe()


def test_a_zips_links_and_names_that_leave_the_folder_are_no_members(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        link = zipfile.ZipInfo("A/link.jpg")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
        for name in (
            "A/x.jpg",
            "/A/absolute.jpg",
            "A/../../A/up.jpg",
            "C:\\A\\back.jpg",
            "A/",
            "A/z\0.jpg",
        ):
            packed.writestr(name, "")
    write_file(tmp_path / "a.zip", buffer.getvalue())
    assert sorted(Source(str(tmp_path)).files("A")) == ["A/x.jpg", "A/z"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_one_name_twice_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "tar":
        data = tarred_members((member(name, b"1"), b"1") for name in ("A/x.jpg", "A/./x.jpg"))
    else:
        data = zipped({"A/x.jpg": b"1", "A//x.jpg": b"2"})
    write_file(tmp_path / f"a.{kind}", data)
    with pytest.raises(UserError, match=rf"a\.{kind} holds 'A/x\.jpg' twice"):
        Source(str(tmp_path)).files()


def zip_of(name: bytes, coded: bytes, size: int, method: int = 8, crc: int = 0) -> bytes:
    """A zip of one member whose header says whatever is wanted."""
    common = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 0, crc, len(coded), size, len(name), 0)
    local = b"PK\x03\x04" + common + name + coded
    central = b"PK\x01\x02\x14\0" + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


@pytest.mark.parametrize("declared", [10, 1 << 20, 0xFFFFFFF0])
def test_ten_gigabytes_of_zeros_in_a_zip(tmp_path: Path, declared: int) -> None:
    write_file(tmp_path / "a.zip", zip_of(b"A/x.jpg", zeros(10, -15), declared))
    source = Source(str(tmp_path))
    with bounded(5, 60):
        (file,) = source.files("A").values()
        with pytest.raises(ValueError, match=r"bytes where the archive lists|bytes, more than"):
            source.read(file.locator)


def test_ten_gigabytes_of_zeros_behind_random_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "MOST_BYTES", 64 << 20)
    write_file(tmp_path / "a.zip", zip_of(b"A/x.mat", zeros(10, -15), 0xFFFFFFF0))
    source = Source(str(tmp_path))
    opened = source.ranges(source.files("A")["A/x.mat"].locator)
    with bounded(5, 40), pytest.raises(ValueError, match="inflates to more than 500 times"):
        opened.read(1 << 31, (1 << 31) + 10)


def test_ten_gigabytes_of_zeros_in_a_gzipped_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "MOST_BYTES", 64 << 20)
    header = member("A/x.jpg")
    header.size = 10 << 30
    data = gzip.compress(header.tobuf()) + zeros(10, 31)
    write_file(tmp_path / "a.tar.gz", data)
    with bounded(5, 40), pytest.raises(UserError, match=r"a\.tar\.gz cannot be read .*500 times"):
        Source(str(tmp_path)).files()


def test_a_stored_member_that_claims_to_be_the_whole_disk(tmp_path: Path) -> None:
    data = bytearray(zip_of(b"A/x.jpg", b"abc", 3))
    at = data.index(b"PK\x01\x02") + 20
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFF0)
    write_file(tmp_path / "a.zip", bytes(data))
    source = Source(str(tmp_path))
    with bounded(1, 5), pytest.raises(ValueError, match="4,294,967,280 bytes, more than"):
        source.read(source.files("A")["A/x.jpg"].locator)


def tar_header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """With `size` as its twelve bytes, whatever they are."""
    block = bytearray(member(name).tobuf())
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


NEGATIVE = b"\xff" * 10 + b"\xfe\x00"  # -512
HUGE = b"\x80" + b"\0" * 4 + b"\x7f" * 7


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g"])
@pytest.mark.parametrize("size", [NEGATIVE, HUGE, b"77777777777\0", b"not a number"])
def test_a_tar_header_with_an_impossible_size(tmp_path: Path, kind: bytes, size: bytes) -> None:
    whole = tarred(FILES)
    write_file(tmp_path / "a.tar", tar_header("A/x.jpg", size, kind) + whole)
    with bounded(2, 20), pytest.raises(UserError, match=r"a\.tar cannot be read"):
        Source(str(tmp_path)).files()


def test_a_tar_of_nothing_but_headers_of_headers(tmp_path: Path) -> None:
    chain = tar_header("A/x.jpg", b"%011o\0" % 512, b"x") + b"17 path=A/y.jpg\n\n".ljust(512, b"\0")
    write_file(tmp_path / "a.tar", chain * 5000 + bytes(1024))
    with bounded(5, 60), pytest.raises(UserError, match=r"a\.tar cannot be read"):
        Source(str(tmp_path)).files()


def test_a_tar_header_that_python_takes_quadratic_time_for(tmp_path: Path) -> None:
    digits = b"1" * (1 << 20)
    long = tar_header("A/x.jpg", b"%011o\0" % len(digits), b"x") + digits
    write_file(tmp_path / "a.tar", long + tarred(FILES))
    with bounded(2, 20), pytest.raises(UserError, match="a header of 1,048,576 bytes"):
        Source(str(tmp_path)).files()


def test_a_zip_whose_directory_claims_to_be_huge(tmp_path: Path) -> None:
    data = bytearray(zipped(FILES))
    at = data.rindex(b"PK\x05\x06")
    data[at + 12 : at + 20] = struct.pack("<II", 0xFFFFFFF0, 0)
    write_file(tmp_path / "a.zip", bytes(data))
    with bounded(1, 20), pytest.raises(UserError, match=r"a\.zip cannot be read"):
        Source(str(tmp_path)).files()


# --- large, and damaged ---------------------------------------------------------------------------


def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in FILES.items():
            with packed.open(name, "w", force_zip64=True) as file:
                file.write(data)
    monkeypatch.undo()
    assert b"PK\x06\x06" in buffer.getvalue()
    write_file(tmp_path / "a.zip", buffer.getvalue())
    assert contents(tmp_path) == FILES


@pytest.mark.parametrize("kind", ["zip", "stored zip", "tar", "tar.gz", "tgz in streams"])
def test_a_cut_archive_is_whole_or_refused(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "whole", FILES)
    (path,) = (tmp_path / "whole").iterdir()
    data = path.read_bytes()
    edges = [len(data) - back for back in (1, 2, 7, 22, 512, 1024, 10240) if back < len(data)]
    headers = list(range(0, len(data), 512)) if kind == "tar" else []
    for length in {*edges, *headers, *RNG.sample(range(len(data)), 60), 0}:
        root = tmp_path / str(length)
        write_file(root / path.name, data[:length])
        try:
            found = contents(root)
        except UserError:
            continue
        assert found == FILES, length


@pytest.mark.parametrize("kind", ["zip", "stored zip", "tar.gz", "tgz in streams"])
def test_flipped_bits_are_noticed(tmp_path: Path, kind: str) -> None:
    """A name may be damaged and nobody can know; the bytes under it may not. (A tar has no checksums.)"""
    KINDS[kind](tmp_path / "whole", FILES)
    (path,) = (tmp_path / "whole").iterdir()
    data = path.read_bytes()
    refused = quarantined = 0
    for number in range(150):
        at, root = RNG.randrange(len(data)), tmp_path / str(number)
        flipped = data[:at] + bytes([data[at] ^ 1 << RNG.randrange(8)]) + data[at + 1 :]
        write_file(root / path.name, flipped)
        try:
            found = contents(root)
        except UserError:
            refused += 1
            continue
        assert {data for data in found.values() if data is not None} <= set(FILES.values())
        quarantined += sum(data is None for data in found.values())
    assert refused + quarantined > 30


def test_a_flipped_bit_in_a_tars_header_does_not_end_the_list(tmp_path: Path) -> None:
    data = bytearray(tarred(FILES))
    at = data.index(b"A/005.jpg")
    data[at + 5] ^= 1
    write_file(tmp_path / "a.tar", bytes(data))
    with pytest.raises(
        UserError, match=rf"a\.tar cannot be read \(damaged or cut at byte {at:,}\)"
    ):
        Source(str(tmp_path)).files()


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        for content in (b"", b"<html>Sign in</html>", RNG.randbytes(2000), b"PK\5\6"):
            write_file(tmp_path / f"{len(content)}{content[:2].hex()}" / name, content)
    for folder in tmp_path.iterdir():
        for path in folder.iterdir():
            with pytest.raises(UserError, match=path.name):
                Source(str(path)).files()


def test_many_streams_of_nothing_end_soon(tmp_path: Path) -> None:
    data = gzip.compress(b"") * 20_000 + in_streams(tarred(FILES), 3)
    write_file(tmp_path / "a.tgz", data)
    with bounded(4, 60):
        assert contents(tmp_path) == FILES


def test_an_inflater_that_failed_can_be_read_again(tmp_path: Path) -> None:
    """What a store could not deliver is not taken for the end, nor for damage."""

    class Flaky:
        failing = False

        def __init__(self, data: bytes) -> None:
            self.data, self.size = data, len(data)

        def read(self, start: int, end: int) -> bytes:
            if self.failing:
                raise OSError("slow down")
            return self.data[start:end]

    content = RNG.randbytes(5 << 20)
    flaky = Flaky(zlib.compress(content, 1))
    inflated = ranges.Inflated(flaky, wbits=15)
    assert inflated.read(100, 200) == content[100:200]
    flaky.failing = True
    with pytest.raises(OSError, match="slow down"):
        inflated.read(3 << 20, 4 << 20)
    flaky.failing = False
    assert inflated.read(3 << 20, 4 << 20) == content[3 << 20 : 4 << 20]
    assert inflated.read(0, 10) == content[:10]


def test_a_store_that_fails_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        size = 1000

        def read(self, start: int, end: int) -> bytes:
            raise ConnectionError("no route")

    for name in ("a.tar", "a.tar.gz"):
        with pytest.raises(ConnectionError):
            archive.list_archive(name, Gone(), 1 << 12)
