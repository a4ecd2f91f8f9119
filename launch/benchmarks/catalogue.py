"""Opening a stream over a catalogue of 10^9 samples in 10^5 shards, as one of 1,024 ranks, anywhere in it."""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from launch.benchmarks.measure import Row, Spread, peak_bytes, resident_bytes, restart_peak, spread
from pipeline.settings import StreamConfig
from pipeline.shards import (
    INDEX_SCHEMA,
    MANIFEST,
    OK,
    Manifest,
    Shard,
    index_name,
    parquet_bytes,
    sha256,
)
from pipeline.stream import Stream

WORLD, RANK, STEP = 1024, 517, 876_543
"""That many ranks, the one that is looked at, and where it starts: in the fourth epoch."""
BATCH = 4 * WORLD
MOST_S, MOST_MB = 1.0, 200.0
JPEG_BYTES, JSON_BYTES = 13_000, 450
"""Usual sizes of members."""


@dataclass(frozen=True)
class Scale:
    shards: int
    slots: int
    """In every shard."""
    rounds: int


FULL = Scale(100_000, 10_000, 5)
TOY = Scale(2_000, 10, 1)


@dataclass(frozen=True)
class Opening:
    cpu_s: float
    wall_s: float
    """Until the first position's place is known: a block of shards is looked into."""
    batch_s: float
    """From there to the keys of the rank's first batch."""
    peak: int
    """Bytes above those of a process that had opened a small set."""


def catalogue_rows(folder: Path, scale: Scale) -> list[Row]:
    write_catalogue(folder / "small", WORLD, 1)
    write_catalogue(folder / "large", scale.shards, scale.slots)
    openings = [_in_a_fresh_process(folder) for _ in range(scale.rounds)]
    what = f"{scale.shards * scale.slots:,} samples in {scale.shards:,} shards, a rank of {WORLD:,}"

    def figure(attribute: str, scale: float = 1.0) -> Spread:
        return spread([getattr(opening, attribute) * scale for opening in openings])

    return [
        Row(
            f"{what}: opened anywhere, to its first place, CPU",
            figure("cpu_s"),
            "s",
            MOST_S,
            "lower",
        ),
        Row(f"{what}: the same, wall", figure("wall_s"), "s", MOST_S, "lower"),
        Row(f"{what}: keys of its first batch then", figure("batch_s"), "s", better="lower"),
        Row(f"{what}: peak memory above imports", figure("peak", 1e-6), "MB", MOST_MB, "lower"),
    ]


def write_catalogue(folder: Path, shards: int, slots: int) -> None:
    """A set without tars. All shards have one index, under as many names."""
    (folder / index_name(0, "")).parent.mkdir(parents=True)
    index = parquet_bytes(pa.Table.from_pylist([_row(n) for n in range(slots)], INDEX_SCHEMA))
    common = folder / "index.parquet"
    common.write_bytes(index)
    for number in range(shards):
        (folder / index_name(0, f"{number:06d}")).symlink_to(common)
    (folder / MANIFEST).write_bytes(_manifest(shards, slots, sha256(index)).to_json())


def _manifest(shards: int, slots: int, index_sha256: str) -> Manifest:
    return Manifest(
        dataset="many",
        domain="many",
        split="train",
        task="detection",
        shards=tuple(
            Shard(
                name=f"{number:06d}",
                variant=0,
                tar_bytes=slots * (JPEG_BYTES + JSON_BYTES) + number,
                tar_sha256=sha256(str(number).encode()),
                index_sha256=index_sha256,
                planned=slots,
                ok=slots,
                quarantined=0,
            )
            for number in range(shards)
        ),
        samples=shards * slots,
        quarantined=0,
        source_samples=shards * slots,
        persons=shards * slots,
        ignored=0,
        plan_hash="",
        licence="none",
    )


def _row(number: int) -> dict[str, Any]:
    start = number * (JPEG_BYTES + JSON_BYTES)
    return {
        **dict.fromkeys(INDEX_SCHEMA.names),
        "key": f"many/train/{number:08d}",
        "status": OK,
        "origin": f"{number:08d}.jpg",
        "run": number,
        "image_type": "jpg",
        "image_offset": start,
        "image_size": JPEG_BYTES,
        "json_offset": start + JPEG_BYTES,
        "json_size": JSON_BYTES,
        "source_sha256": sha256(str(number).encode()),
        "width": 1280,
        "height": 720,
        "persons": 1,
        "ignored": 0,
        "identities": [],
    }


def _in_a_fresh_process(folder: Path) -> Opening:
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        return processes.submit(_open, folder).result()


def _open(folder: Path) -> Opening:
    _first_batch(_config(folder / "small"))  # libraries import parts of themselves when first used
    restart_peak()
    before = resident_bytes()
    seconds = _first_batch(_config(folder / "large"))
    return Opening(*seconds, peak_bytes() - before)


def _first_batch(config: StreamConfig) -> tuple[float, float, float]:
    """CPU and wall seconds to the first place, and from there to the keys of the rank's batch."""
    cpu, wall = time.process_time(), time.perf_counter()
    stream = Stream.open(config, RANK, WORLD)
    stream.tasks["detection"].order.at(STEP * BATCH + RANK * BATCH // WORLD)
    cpu, first = time.process_time() - cpu, time.perf_counter()
    stream.rank_ids(STEP)
    return cpu, first - wall, time.perf_counter() - first


def _config(folder: Path) -> StreamConfig:
    return StreamConfig.model_validate(
        {"scenes": [{"shards": str(folder), "weight": 1}], "scene_batch": BATCH}
    )
