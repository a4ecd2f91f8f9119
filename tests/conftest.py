"""Fixtures that several test files share."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sharding.miniature import TruthImage


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> "tuple[Path, list[TruthImage]]":
    """All releases in small, in `root/{crowdhuman,ecp,...}`, and what was drawn. Not to be changed."""
    # here, so that tests on a borrowed GPU need not read releases
    from small_miniature import SMALL

    from sharding.miniature import write

    root = tmp_path_factory.mktemp("miniature")
    return root, write(root, SMALL)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run file of a run of seconds, beside its shard sets. Not to be changed."""
    from ranks import (
        tiny_run_file,
    )  # not on top: it imports torch, which few tests of the pipeline need

    return tiny_run_file(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def undisturbed_run(tiny_run: Path) -> Path:
    """What two ranks make of it, to its end. Not to be changed."""
    from ranks import command, launch

    launch(2, command(tiny_run, tiny_run.parent / "run"), tiny_run.parent / "ranks")
    return tiny_run.parent / "run"
