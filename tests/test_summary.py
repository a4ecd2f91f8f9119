"""What is said of a run: the estimate before it, the table and the JSON after it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import fake_crops, fake_scenes
from finished_set import write_finished_set

from pipeline.shards import Manifest
from sharding.estimate import estimate
from sharding.job import SetOutcome
from sharding.plan import PlanConfig
from sharding.prepare import prepare
from sharding.recipe import SetRequest
from sharding.source import Source
from sharding.summary import plan_report, run_summary, table_lines
from sharding.writer import ShardResult, write_shard


def outcome(tmp_path: Path, name: str, expected: int | None = None) -> SetOutcome:
    scenes = replace(fake_scenes(5), name=name)
    scenes.images["0002"] = b"<html>"
    manifest: Manifest = write_finished_set(scenes, str(tmp_path / name))
    request = SetRequest(
        scenes, Source("/release"), "train", str(tmp_path / name), PlanConfig(), expected
    )
    return SetOutcome(request, manifest, None, 1.5, 1, 0, 1000, 2000)


def test_the_table_adds_up_against_the_recipe(tmp_path: Path) -> None:
    lines = table_lines([outcome(tmp_path, "crowd", 6), outcome(tmp_path, "town", 4)])
    assert lines[0].split("  ")[0] == "set"
    assert lines[0].endswith("source / published  images / recipe")
    # Images, boxes of both kinds, identities, quarantined, excluded, then the two comparisons.
    assert lines[1].split() == [
        "crowd",
        "train",
        "4",
        "8",
        "0",
        "1",
        "3",
        "5",
        "/",
        "7",
        "4",
        "/",
        "6",
    ]
    assert lines[3].split() == ["sum", "8", "16", "0", "2", "6", "10", "/", "14", "8", "/", "10"]
    assert len({len(line) for line in lines}) == 1


def test_without_a_recipe_nothing_is_compared_with_one(tmp_path: Path) -> None:
    header, row = table_lines([outcome(tmp_path, "crowd")])
    assert header.endswith("source / published")
    assert row.endswith("5 / 7")


def test_the_summary_is_json_and_names_what_failed(tmp_path: Path) -> None:
    good = outcome(tmp_path, "crowd")
    bad = replace(good, manifest=None, error="3 shards could not be written")
    record = json.loads(run_summary([good, bad]))
    assert record["packages"]["simplejpeg"]
    first, second = record["sets"]
    assert first["quarantined"] == {"neither JPEG nor PNG (starts with 3c68746d6c3e)": 1}
    assert (first["samples"], first["source_samples"], first["excluded"]) == (4, 8, {"too dull": 3})
    assert first["read_bytes"] == 1000
    assert second["error"] == "3 shards could not be written"
    assert "samples" not in second


def test_an_estimate_comes_from_samples_that_are_really_converted(tmp_path: Path) -> None:
    crops = fake_crops(60, 5)
    request = SetRequest(
        crops, Source(str(tmp_path)), "train", str(tmp_path / "out"), PlanConfig(shard_crops=20)
    )
    prepared = prepare(request)
    made = estimate(prepared)
    assert made.tried == 48
    assert made.core_hours > 0
    results = [write_shard(job) for job in prepared.jobs()]
    written = sum(result.written_bytes for result in results if isinstance(result, ShardResult))
    # Tar headers and padding are not in it.
    assert made.written_bytes < written < 1.5 * made.written_bytes
    lines = list(plan_report([prepared, prepared], 2))
    estimates = [line for line in lines if line.startswith("  estimate from 48 samples: ")]
    assert [" MB to write in 0." in line for line in estimates] == [True, True]
    assert lines[-1].startswith("in all: 120 images, ")


def test_an_estimate_of_nothing_usable_says_so(tmp_path: Path) -> None:
    crops = fake_crops(3, 2)
    crops.images = dict.fromkeys(crops.images, b"broken")
    request = SetRequest(crops, Source(str(tmp_path)), "train", str(tmp_path / "out"), PlanConfig())
    nothing = "  estimate from 0 samples: nothing is known, for none could be used"
    assert nothing in plan_report([prepare(request)], 1)


@pytest.mark.parametrize("shards", [1, 7])
def test_the_estimate_is_spread_over_the_shards(tmp_path: Path, shards: int) -> None:
    crops = fake_crops(70, 5)
    config = PlanConfig(shard_crops=70 // shards)
    prepared = prepare(
        SetRequest(crops, Source(str(tmp_path)), "train", str(tmp_path / "out"), config)
    )
    assert len(prepared.plan.shards) == shards
    assert estimate(prepared).tried >= 48
