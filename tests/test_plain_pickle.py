"""The reader of plain pickles builds what `pickle` would, and refuses everything else."""

import collections
import pickle
import pickletools
import time
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
def test_equals_pickle(value: Any, protocol: int) -> None:
    assert read_plain(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_long_lists_and_repeated_text_in_every_protocol(protocol: int) -> None:
    texts = [f"30_00_0292_{i % 2500:08d}" for i in range(5000)]
    value = {"keys": texts[:2500] + texts[:2500], "pids": [-70_000, *range(300)], "more": texts}
    data = pickle.dumps(value, protocol)
    assert read_plain(data) == value
    assert read_plain(pickletools.optimize(data)) == value


def test_python_2_counts_its_stored_values_from_one() -> None:
    assert read_plain(b"]q\x01(U\x02abq\x02h\x02e.") == ["ab", "ab"]


def test_many_keys_take_moments() -> None:
    """pickletools.genops would take minutes."""
    keys = [f"30_00_0292_{i:08d}" for i in range(200_000)]
    data = pickle.dumps(keys, 2)
    started = time.process_time()
    assert read_plain(data) == keys
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "value",
    [len, Path("x"), np.arange(3), collections.OrderedDict(a=1), ValueError("x"), {1, 2}],
    ids=lambda value: type(value).__name__,
)
def test_refuses_what_is_not_plain(value: object) -> None:
    with pytest.raises(ValueError, match="builds more than lists, dicts and text"):
        read_plain(pickle.dumps(value))


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
        b"X\x05\x00\x00\x00abc.",
        b"X\xff\xff\xff\xffabc.",
        b"]r\xff\xff\xff\xff.",
        b"]p-3\n.",
    ],
)
def test_refuses_what_is_malformed(content: bytes) -> None:
    with pytest.raises(ValueError):
        read_plain(content)
