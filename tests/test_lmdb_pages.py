"""The reader of LMDB pages finds what the lmdb library wrote, and damage is a ValueError, never a crash."""

import contextlib
import random
import time
import zipfile
from pathlib import Path

import lmdb
import pytest

from sharding.archive import Ranges
from sharding.datasets.lmdb_pages import LmdbPages
from sharding.source import Source


class Bytes:
    """A file in memory, that counts how often it is read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.reads = data, 0

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, end: int) -> bytes:
        self.reads += 1
        return self.data[start:end]


def key(number: int) -> bytes:
    return f"{number % 60:02d}_{number:08d}".encode()


def value(number: int) -> bytes:
    """Empty, small, nearly a page, or one of several pages."""
    return number.to_bytes(4, "little") * (0, 5, 490, 9_000)[number % 4]


def write(folder: Path, numbers: list[int], commit_every: int = 100) -> bytes:
    """Puts the numbers in that order, negative ones deleting theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 28, lock=False) as environment:
        for first in range(0, len(numbers), commit_every):
            with environment.begin(write=True) as transaction:
                for number in numbers[first : first + commit_every]:
                    if number < 0:
                        transaction.delete(key(-number))
                    else:
                        transaction.put(key(number), value(number))
    return (folder / "data.mdb").read_bytes()


def check(data: Ranges, numbers: set[int], readers: int = 1) -> None:
    pages = LmdbPages(data, readers)
    expected = sorted((key(number), value(number)) for number in numbers)
    assert pages.entries == len(expected)
    assert list(pages.items()) == [(name, len(content)) for name, content in expected]
    for name, content in expected:
        assert pages.get(name) == content
        assert pages.get(name + b"0") is None
    assert pages.get(b"") is pages.get(b"\xff" * 600) is None


def test_thousands_of_keys_deleted_and_put_again(tmp_path: Path) -> None:
    rng = random.Random(0)
    numbers = list(range(1, 3001))
    rng.shuffle(numbers)
    gone = numbers[::3]
    again = gone[::2]
    data = write(tmp_path, [*numbers, *(-number for number in gone), *again])
    left = set(numbers) - set(gone) | set(again)
    check(Bytes(data), left)
    check(Bytes(data), left, readers=4)


def test_many_levels(tmp_path: Path) -> None:
    """Long keys make a tree of four levels: branches point to branches."""
    names = [f"{number:0500d}".encode() for number in range(4000)]
    with lmdb.open(str(tmp_path), map_size=1 << 26, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            for name in random.Random(1).sample(names, len(names)):
                transaction.put(name, name[-3:])
        assert environment.stat()["depth"] >= 4
    pages = LmdbPages(Bytes((tmp_path / "data.mdb").read_bytes()))
    assert list(pages.items()) == [(name, 3) for name in names]
    assert all(pages.get(name) == name[-3:] for name in names)


def test_empty_databases(tmp_path: Path) -> None:
    check(Bytes(write(tmp_path / "new", [])), set())
    check(Bytes(write(tmp_path / "emptied", [1, 2, 3, -1, -2, -3])), set())
    check(Bytes(write(tmp_path / "one", [4])), {4})


def test_the_newest_commit_holds(tmp_path: Path) -> None:
    for number in range(1, 5):
        check(Bytes(write(tmp_path, [number])), set(range(1, number + 1)))


def test_in_place_of_an_archive(tmp_path: Path) -> None:
    numbers = list(range(1, 200))
    write(tmp_path / "lmdb", numbers)
    with zipfile.ZipFile(tmp_path / "release.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.write(tmp_path / "lmdb" / "data.mdb", "a/data.mdb")
    source = Source(str(tmp_path / "release.zip"))
    found = source.find("a/data.mdb")
    assert found is not None
    check(source.ranges(found.locator), set(numbers))


def test_a_scan_reads_neighbouring_leaves_at_once_and_no_values(tmp_path: Path) -> None:
    folder = tmp_path
    with lmdb.open(str(folder), map_size=1 << 26, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            for number in range(20_000):
                transaction.put(b"%08d" % number, b"0123456789", append=True)
        leaves = environment.stat()["leaf_pages"]
    data = Bytes((folder / "data.mdb").read_bytes())
    assert sum(1 for _ in LmdbPages(data).items()) == 20_000
    assert data.reads < leaves / 10
    large = Bytes(write(tmp_path / "large", [4 * number + 3 for number in range(300)]))
    assert sum(size for _, size in LmdbPages(large).items()) == 300 * 36_000
    assert data.reads < 50


def test_cut_files(tmp_path: Path) -> None:
    numbers = list(range(1, 400))
    whole = write(tmp_path, numbers)
    for size in [0, 1, 100, 4096, 4200, *range(8192, len(whole), len(whole) // 40)]:
        with pytest.raises(ValueError):
            check(Bytes(whole[:size]), set(numbers))


def test_flipped_bits_are_noticed_or_harm_one_key(tmp_path: Path) -> None:
    """Whatever one flipped bit does: it ends soon, in a ValueError or in keys that are still in order."""
    numbers = list(range(1, 150))
    whole = write(tmp_path, numbers, commit_every=1000)
    tree = [number for number in range(len(whole) // 4096) if _is_tree(whole, number)]
    rng = random.Random(2)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        page = rng.choice(tree)
        position = page * 4096 + rng.choice(
            (rng.randrange(16), rng.randrange(96), rng.randrange(4096))
        )
        data[position] ^= 1 << rng.randrange(8)
        try:
            pages = LmdbPages(Bytes(bytes(data)))
            items = list(pages.items())
            if not items:
                continue  # what was before the commit: a flip of its number brings that back
            found = {name: pages.get(name) for name, _ in items}
            assert pages.entries == len(items) == len(numbers)
            assert items == sorted(items)
            assert all(
                content is None or len(content) == size
                for (_, size), content in zip(items, found.values())
            )
            wrong = sum(found.get(key(number)) != value(number) for number in numbers)
            assert wrong <= 2
        except ValueError:
            refused += 1
    assert refused > 100


def _is_tree(data: bytes, number: int) -> bool:
    """A description, a branch or a leaf, by what its header says."""
    return int.from_bytes(data[number * 4096 :][:8], "little") == number and data[
        number * 4096 + 10
    ] in (1, 2, 8)


def test_a_tree_that_leads_round_in_circles_ends(tmp_path: Path) -> None:
    """All branches point to one and the same leaf, or to the root above them."""
    names = [f"{number:0500d}".encode() for number in range(4000)]
    with (
        lmdb.open(str(tmp_path), map_size=1 << 26, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for name in names:
            transaction.put(name, b"")
    whole = (tmp_path / "data.mdb").read_bytes()
    branches = [
        n for n in range(len(whole) // 4096) if _is_tree(whole, n) and whole[n * 4096 + 10] == 1
    ]
    leaf = next(
        n for n in range(len(whole) // 4096) if _is_tree(whole, n) and whole[n * 4096 + 10] == 2
    )
    for target in (leaf, branches[0], branches[-1], 1 << 47):
        data = bytearray(whole)
        for branch in branches:
            page = branch * 4096
            count = (int.from_bytes(data[page + 12 : page + 14], "little") - 16) // 2
            for place in range(count):
                at = page + int.from_bytes(data[page + 16 + 2 * place :][:2], "little")
                data[at : at + 6] = target.to_bytes(6, "little")
        started = time.process_time()
        with pytest.raises(ValueError):
            list(LmdbPages(Bytes(bytes(data))).items())
        with contextlib.suppress(ValueError):
            LmdbPages(Bytes(bytes(data))).get(names[7])
        assert time.process_time() - started < 1


def test_other_kinds_are_named(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "named"), map_size=1 << 20, max_dbs=2, lock=False) as environment:
        inner = environment.open_db(b"inner")
        with environment.begin(write=True) as transaction:
            transaction.put(b"a", b"1", db=inner)
    named = LmdbPages(Bytes((tmp_path / "named" / "data.mdb").read_bytes()))
    with pytest.raises(ValueError, match="named sub-databases and repeated keys are not supported"):
        list(named.items())
    with pytest.raises(ValueError, match="named sub-databases"):
        named.get(b"inner")
    repeated = bytearray(write(tmp_path / "plain", [1, 2]))
    for page in (0, 4096):
        repeated[page + 92] |= (
            4  # the main tree's flag of repeated keys, which the library cannot set
        )
    with pytest.raises(ValueError, match="repeated keys and special orders of keys"):
        LmdbPages(Bytes(bytes(repeated)))
    with pytest.raises(ValueError, match="not an LMDB"):
        LmdbPages(Bytes(b"<html>" * 4000))
