"""Fixtures that several test files share."""

from pathlib import Path

import pytest

from sharding.miniature import MiniatureConfig, TruthImage, write

SMALL = MiniatureConfig(
    scale=0.5,
    crowdhuman_train=12,
    crowdhuman_val=3,
    ecp_day_train=8,
    ecp_day_val=2,
    ecp_night_train=2,
    ecp_night_val=2,
    ecp_empty=2,
    msmt17_train_identities=5,
    msmt17_test_identities=3,
    cuhk03_train_identities=6,
    cuhk03_test_identities=3,
    crops_per_identity=5,
    luperson_crops=30,
    luperson_identities=10,
    luperson_nl_crops=14,
    luperson_nl_identities=5,
    posetrack21_train=9,
    posetrack21_val=12,
    posetrack21_train_identities=5,
    posetrack21_val_identities=5,
    prw_train=8,
    prw_test=14,
    prw_train_identities=4,
    prw_test_identities=5,
    cuhk_sysu_train=8,
    cuhk_sysu_test=12,
    cuhk_sysu_train_identities=5,
    cuhk_sysu_test_identities=5,
)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TruthImage]]:
    """All releases in small, in `root/{crowdhuman,ecp,...}`, and what was drawn. Not to be changed."""
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
