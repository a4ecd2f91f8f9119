"""The figure and the file of sources' domains, before pre-trainings of one world and after each."""

import json
from pathlib import Path

import numpy as np
import pytest

from launch.experiments import domains
from launch.reporting.domains import Domains
from pipeline.errors import UserError

SOURCES = ("crowdhuman", "ecp", "msmt17", "cuhk03")


def features(seed: int, apart: float) -> Domains:
    """12 images of each source; a network that is trained tells them apart by `apart`."""
    draw = np.random.default_rng(seed)
    names = np.repeat(SOURCES, 12)
    kinds = np.where(np.isin(names, SOURCES[:2]), "scenes", "canvases")
    offsets = np.repeat(np.arange(4), 12)[:, None] * apart
    stages = {
        "before": np.random.default_rng(0).normal(size=(48, 8)),
        "after": draw.normal(size=(48, 8)) + offsets,
    }
    return Domains(600, names, kinds, stages)


def test_pre_trainings_stand_beside_what_they_all_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"pretrain-hybrid": features(1, 0.0), "pretrain-no_alignment": features(2, 30.0)}
    monkeypatch.setattr(domains, "_measured", lambda run: (runs[run.name], {"run": run.name}))
    folders = [tmp_path / name for name in runs]
    head, _, detection, reid, *_ = domains.compare_domains(folders, tmp_path).splitlines()
    assert head.split(" | ")[2:5] == [
        "before",
        "after pretrain-hybrid",
        "after pretrain-no_alignment",
    ]
    for row, task in ((detection, "| detection | 24 |"), (reid, "| re-ID | 24 |")):
        assert row.startswith(task) and row.endswith("| 100.0 ± 0.0 | 50 |")
        assert row.count("100.0") == 1
    recorded = json.loads((tmp_path / "results/domains.json").read_text())
    assert [one["run"] for one in recorded] == list(runs)
    assert (tmp_path / "results/domains.svg").stat().st_size


def test_other_first_weights_are_no_start_to_compare_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = features(1, 0.0)
    other.stages["before"][0, 0] += 1
    runs = {"pretrain-hybrid": features(1, 0.0), "pretrain-other": other}
    monkeypatch.setattr(domains, "_measured", lambda run: (runs[run.name], {}))
    with pytest.raises(UserError, match="pretrain-hybrid and pretrain-other see other images or"):
        domains.compare_domains([tmp_path / name for name in runs], tmp_path)
    with pytest.raises(UserError, match="one name"):
        domains.compare_domains([tmp_path / name / "pretrain-hybrid" for name in "ab"], tmp_path)
    assert not (tmp_path / "results").exists()
