"""Indexes of shards as they lie at an output, read and checked."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shards import (
    FORGOTTEN,
    INDEX_SCHEMA,
    OK,
    QUARANTINED,
    Shard,
    read_parquet,
    sha256,
)
from pipeline.stores.store import Location

READERS = 16
"""A store answers each late, and parsing lets other threads run."""


@dataclass(frozen=True)
class WrittenIndex:
    """An index as it lies at the output."""

    table: pa.Table
    sha256: str
    plan_hash: str
    plan: dict[str, Any]
    """The plan's description."""
    tar_bytes: int
    tar_sha256: str
    tar: str
    """Where another tool's tar lies, as `Shard.tar`."""
    others: dict[str, int]
    """Members of such a tar that are neither image nor JSON, by extension."""

    @classmethod
    def parse(cls, data: bytes) -> "WrittenIndex":
        """Raises whatever pyarrow has for damaged bytes, KeyError or ValueError."""
        table = read_parquet(data)
        if table.schema.remove_metadata() != INDEX_SCHEMA:
            raise ValueError("other columns than an index has")
        metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        return cls(
            table=table.replace_schema_metadata(),
            sha256=sha256(data),
            plan_hash=metadata["plan_hash"],
            plan=json.loads(metadata["plan"]),
            tar_bytes=int(metadata["tar_bytes"]),
            tar_sha256=metadata["tar_sha256"],
            tar=metadata.get("tar", ""),
            others=json.loads(metadata.get("others", "{}")),
        )

    def shard(self, name: str, variant: int, supplement: bool = False) -> Shard:
        """Its entry in the manifest."""
        return Shard(
            name=name,
            variant=variant,
            tar_bytes=self.tar_bytes,
            tar_sha256=self.tar_sha256,
            index_sha256=self.sha256,
            planned=self.table.num_rows,
            ok=self.count(OK),
            quarantined=self.count(QUARANTINED),
            forgotten=self.count(FORGOTTEN),
            supplement=supplement,
            tar=self.tar,
        )

    def count(self, status: str) -> int:
        return int(pc.sum(pc.equal(self.table["status"], status)).as_py() or 0)


def read_index(location: Location) -> WrittenIndex | None:
    """None if there is none, or it is damaged."""
    data = location.read_if_there()
    if data is None:
        return None
    try:
        return WrittenIndex.parse(data)
    except (OSError, pa.ArrowException, KeyError, ValueError):  # of parsing: `data` is in memory
        return None


def read_indexes(out: Location, names: Iterable[str]) -> Iterator[tuple[str, WrittenIndex | None]]:
    """`read_index` of many, in their order, a few of them in memory at a time."""
    remaining = iter(names)
    with ThreadPoolExecutor(READERS) as readers:
        while batch := list(islice(remaining, 4 * READERS)):
            yield from zip(batch, readers.map(lambda name: read_index(out.child(name)), batch))
