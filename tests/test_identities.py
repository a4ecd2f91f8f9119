"""The look-up table's rows never move."""

import pytest

from pipeline.identities import Identities


def test_rows_are_append_only_and_shared_by_nobody() -> None:
    first = Identities().extended("msmt17", ["train:0", "train:1"])
    more = first.extended("cuhk03", ["train:0"]).extended("msmt17", ["train:1", "val:0"])
    assert more.pairs[:2] == first.pairs
    assert [more.row("msmt17", i) for i in ("train:0", "train:1", "val:0")] == [0, 1, 3]
    assert more.row("cuhk03", "train:0") == 2
    assert more.num_rows == 4


def test_people_without_a_row() -> None:
    identities = Identities().extended("msmt17", ["train:0"])
    assert identities.row("msmt17", None) == -1
    assert identities.row("luperson", "train:0") == -1


def test_json() -> None:
    identities = Identities().extended("msmt17", ["train:0", "train:1"])
    assert Identities.from_json(identities.to_json()) == identities
    with pytest.raises(ValueError):
        Identities.from_json(b'{"pairs": [["a"]]}')
