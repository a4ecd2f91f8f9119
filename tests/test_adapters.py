"""All adapters."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from sharding.datasets import ADAPTERS


@pytest.mark.parametrize("name", ADAPTERS)
def test_unknown_split_and_absent_source(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="has no split 'tset'; its splits are"):
        ADAPTERS[name].list_samples(tmp_path, "tset")
    for split in ADAPTERS[name].splits:
        with pytest.raises(UserError, match="does not exist"):
            ADAPTERS[name].list_samples(tmp_path / "nowhere", split)
