"""The reader of plain pickles builds what `pickle` would, and refuses everything else."""

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.datasets.plain_pickle import read_plain

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner)
        | st.lists(inner, min_size=4).map(tuple)
    ),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([3, 4, 5]))
def test_equals_pickle(tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain(path) == value


@pytest.mark.parametrize("protocol", range(6))
def test_long_lists_and_repeated_text_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = {"keys": [f"30_00_0292_{i % 2500:08d}" for i in range(5000)], "pids": list(range(300))}
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(value, protocol))
    assert read_plain(tmp_path / "keys.pkl") == value


@pytest.mark.parametrize(
    "value",
    [len, Path("x"), np.arange(3), collections.OrderedDict(a=1), ValueError("x"), {1, 2}],
    ids=lambda value: type(value).__name__,
)
def test_refuses_what_is_not_plain(tmp_path: Path, value: object) -> None:
    (tmp_path / "keys.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match="builds more than lists, dicts and text"):
        read_plain(tmp_path / "keys.pkl")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b".",
        b"](.",
        b"a.",
        b"h\x05.",
        b"]K\x01u.",
        b"(K\x01d.",
        b"K\x01K\x02.",
        b"\x80\x04]",
    ],
)
def test_refuses_what_is_malformed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys.pkl").write_bytes(content)
    with pytest.raises(ValueError):
        read_plain(tmp_path / "keys.pkl")
