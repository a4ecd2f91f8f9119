"""Damage is a bad sample; another tar in a shard's place is said to be one."""

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.samples import BadSample, SampleReader
from pipeline.shards import ShardSet
from tests.shardset import Item, canvas_items, write_shard_set

ADVICE = "`python -m sharding verify` of its shard set"


def of_equal_size(items: list[Item]) -> list[list[Item]]:
    """Shards of one size, image by image, that hold other samples: padded with what JPEG decoders skip."""
    size = max(len(item.image) for item in items)
    padded = [
        Item(i.annotation, i.image + bytes(size - len(i.image)), run=i.run, status=i.status)
        for i in items
    ]
    return [padded[start : start + 4] for start in range(0, len(items), 4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_shard_set(tmp_path, [of_equal_size(canvas_items(8))])
    return tmp_path


def tar(root: Path, number: int = 0) -> Path:
    return root / f"shards/v0/{number:06d}.tar"


def outcome(root: Path, slot: int, check: bool = False) -> str:
    reader = SampleReader(ShardSet(str(root)), check_hashes=check)
    try:
        return reader.read(0, 0, slot).annotation.key
    except (BadSample, UserError) as problem:
        return f"{type(problem).__name__}: {problem}"


def test_another_shard_of_the_same_size_is_named(root: Path) -> None:
    first, second = tar(root).read_bytes(), tar(root, 1).read_bytes()
    assert len(first) == len(second)
    tar(root).write_bytes(second)
    assert outcome(root, 0).startswith(
        f"UserError: {tar(root)} is not the tar that its index was made of: of 4 members looked for, 4"
    )
    assert ADVICE in outcome(root, 0)


def test_rubbish_of_the_same_size_is_named(root: Path) -> None:
    tar(root).write_bytes(os.urandom(tar(root).stat().st_size))
    assert "is not the tar that its index was made of" in outcome(root, 2)


def test_one_flipped_bit_is_a_bad_sample_wherever_it_is(root: Path) -> None:
    """In the key, it turns into that of another sample that there is."""
    whole = tar(root).read_bytes()
    key = whole.index(b'"market/train/00000"') + len(b'"market/train/0000')
    header = whole.index(b"market/train/00000.json")
    for place in (key, header, key - 30, key + 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        tar(root).write_bytes(damaged)
        said = outcome(root, 0)
        assert said == "market/train/00000" or said.startswith("BadSample: "), said
        assert place != key or said.endswith("where the index says 'market/train/00000'")
        assert [outcome(root, slot) for slot in (1, 2, 3)] == [
            f"market/train/{number:05d}" for number in (1, 2, 3)
        ]


def test_a_tar_that_is_cut_while_it_is_read_is_named(root: Path) -> None:
    reader = SampleReader(ShardSet(str(root)))
    reader.read(0, 0, 0)
    os.truncate(tar(root), 4096)
    with pytest.raises(UserError, match=r"000000\.tar ends before byte \d+"):
        reader.read(0, 0, 3)


def test_hashes_are_checked_where_that_is_asked_for(root: Path) -> None:
    assert outcome(root, 0, check=True) == "market/train/00000"
    data = bytearray(tar(root).read_bytes())
    data[-1] ^= 1
    tar(root).write_bytes(data)
    assert outcome(root, 0) == "market/train/00000"
    said = outcome(root, 0, check=True)
    assert said.startswith(f"UserError: {tar(root)} has the sha256 ")
    assert "but the manifest says" in said
