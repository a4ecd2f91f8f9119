"""Planning millions of crops, at first and over a finished output, each in a process of its own."""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from launch.benchmarks import releases
from launch.benchmarks.measure import Row, exactly, peak_bytes
from pipeline.shards import INDEX_SCHEMA, OK, index_name, parquet_bytes, sha256, tar_name
from sharding.datasets import ADAPTERS
from sharding.plan import Plan, PlanConfig
from sharding.prepare import prepare
from sharding.recipe import SetRequest
from sharding.source import Source

COUNT = 4_200_000
MOST_S, MOST_MB = 90, 2000
CANVAS_BYTES, JSON_BYTES = 13_000, 450
"""Usual sizes of members."""


@dataclass(frozen=True)
class Planned:
    cpu_s: float
    wall_s: float
    peak: int
    """Bytes."""
    todo: int
    """Shards left to write."""


def planning_rows(folder: Path, count: int) -> list[Row]:
    releases.write_many(folder / "many", count)
    first, again = (_in_a_fresh_process(folder) for _ in range(2))
    assert first.todo and not again.todo
    return [
        *_rows(f"planning {count:,} crops", first),
        *_rows(f"planning {count:,} crops again, all written", again),
    ]


def _rows(what: str, planned: Planned) -> list[Row]:
    return [
        Row(f"{what}, CPU", exactly(planned.cpu_s), "s", MOST_S, "lower"),
        Row(f"{what}, wall", exactly(planned.wall_s), "s", MOST_S, "lower"),
        Row(f"{what}, peak memory", exactly(planned.peak / 1e6), "MB", MOST_MB, "lower"),
    ]


def _in_a_fresh_process(folder: Path) -> Planned:
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        return processes.submit(_plan, folder).result()


def _plan(folder: Path) -> Planned:
    """Plans; what is still to be written is then put there, as if it had been."""
    out = folder / "out"
    source = Source(str(folder / "many"))
    request = SetRequest(ADAPTERS["luperson"], source, "train", str(out), PlanConfig())
    cpu, wall = time.process_time(), time.perf_counter()
    prepared = prepare(request)
    planned = Planned(
        time.process_time() - cpu, time.perf_counter() - wall, peak_bytes(), len(prepared.todo)
    )
    if planned.todo:
        _pretend(out, prepared.plan)
    return planned


def _pretend(out: Path, plan: Plan) -> None:
    """An output like a finished one: tars of holes, and every index with the rows of the first."""
    size = 2 * 512 + (CANVAS_BYTES + JSON_BYTES) * plan.shards.size(0)
    metadata = {
        "plan_hash": plan.hash,
        "plan": json.dumps(plan.description(), sort_keys=True),
        "tar_bytes": str(size),
        "tar_sha256": sha256(b""),
    }
    schema = INDEX_SCHEMA.with_metadata(metadata)
    index = parquet_bytes(pa.Table.from_pylist(_index_rows(plan), schema))
    for variant in range(plan.variants):
        (out / tar_name(variant, "")).parent.mkdir(parents=True, exist_ok=True)
        for number in range(len(plan.shards)):
            name = plan.shards.name(number)
            (out / index_name(variant, name)).write_bytes(index)
            (out / tar_name(variant, name)).touch()
            os.truncate(out / tar_name(variant, name), size)


def _index_rows(plan: Plan) -> list[dict[str, Any]]:
    rows = []
    for number, planned in enumerate(plan.shards[0].samples):
        start = number * (CANVAS_BYTES + JSON_BYTES)
        row: dict[str, Any] = {
            **dict.fromkeys(INDEX_SCHEMA.names),
            "key": planned.source.key,
            "status": OK,
            "origin": planned.source.origin,
            "run": planned.run,
            "image_type": "jpg",
            "image_offset": start,
            "image_size": CANVAS_BYTES - number % 1000,
            "json_offset": start + CANVAS_BYTES,
            "json_size": JSON_BYTES - number % 10,
            "source_sha256": sha256(planned.source.key.encode()),
            "width": 256,
            "height": 512,
            "persons": 1,
            "ignored": 0,
            "identities": [],
        }
        rows.append(row)
    return rows
