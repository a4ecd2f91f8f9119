"""Writes a listing's shards, without Ray, and proves that every sample is accounted for and decodes."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import webdataset

from pipeline.annotation import Annotation
from pipeline.rendering.decode import decode
from pipeline.shards import OK, QUARANTINED, index_name, tar_name
from sharding.convert import Conversion
from sharding.datasets.base import Adapter, Listing
from sharding.plan import PlanConfig, make_plan
from sharding.source import Source
from sharding.writer import ShardJob, ShardResult, write_shard

MEMORY = 1 << 30


def write_all(
    adapter: Adapter, source: Source, listing: Listing, split: str, out: Path, **settings: object
) -> dict[str, dict]:
    """The rows of all indexes by key. Every sample is in one of them, or left out by a rule."""
    config = PlanConfig(**settings)
    plan = make_plan(adapter, split, listing, config)
    conversion = Conversion(adapter, source, split, config, plan.variants, MEMORY)
    rows: dict[str, dict] = {}
    for shard in plan.shards:
        result = write_shard(ShardJob(conversion, shard, str(out), plan.hash, plan.description()))
        assert isinstance(result, ShardResult), result
        table = pq.read_table(out / index_name(0, shard.name)).to_pylist()
        _check(table, out / tar_name(0, shard.name))
        assert not rows.keys() & {row["key"] for row in table}
        rows |= {row["key"]: row for row in table}
    assert rows.keys() == {sample.key for sample in (*listing.samples, *listing.faulty)}
    assert len(rows) + sum(plan.excluded.values()) == listing.total
    return rows


def _check(table: list[dict], tar: Path) -> None:
    samples = webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    stored = {sample["__key__"]: sample for sample in samples}
    assert stored.keys() == {row["key"] for row in table if row["status"] == OK}
    for row in table:
        if row["status"] == OK:
            _check_sample(stored[row["key"]], row)
        else:
            assert row["status"] == QUARANTINED
            assert row["reason"].isprintable(), row["reason"]


def _check_sample(sample: dict[str, bytes], row: dict) -> None:
    annotation = Annotation.from_json(sample["json"])
    pixels = decode(sample[row["image_type"]], row["image_type"])
    assert pixels.shape == (annotation.height, annotation.width, 3)
    assert pixels.dtype == np.uint8
    assert (row["width"], row["height"]) == (annotation.width, annotation.height)
    assert annotation.source == row["origin"]
