"""Writes one shard: every variant's tar and index, the same bytes whoever writes it and how often.

The tar is published first and its index after it, each whole or not at all, so that an index in its
place is the one mark of a finished shard. Two writers of one shard at once do no harm.
"""

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.annotation import identities_of, summarise
from pipeline.shards import INDEX_SCHEMA, OK, QUARANTINED, index_name, parquet_bytes, tar_name
from pipeline.stores.store import Location
from sharding.convert import VANISHED, Conversion, Member, NeedsMemory, convert, read_sample
from sharding.image import Fault
from sharding.plan import PlannedSample, ShardPlan
from sharding.reading import READERS
from sharding.tar import TarWriter

READ_AHEAD_BYTES = 64 << 20


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to write one shard."""

    conversion: Conversion
    shard: ShardPlan
    out: str
    plan_hash: str
    description: dict[str, Any]
    """Of the plan: stored in each index, so that a later, different plan can name the difference."""
    rescue: bool = False
    """Keep what can be used and leave out the rest, which is quarantined elsewhere already."""


@dataclass(frozen=True)
class ShardResult:
    name: str
    ok: int
    quarantined: int
    read_bytes: int
    """Of the source."""
    written_bytes: int


@dataclass(frozen=True)
class TooLarge:
    """The shard was not written: an image in it takes more memory than was set aside."""

    name: str
    needed: int


def write_shard(job: ShardJob) -> ShardResult | TooLarge:
    """Raises OSError if the source or the destination keeps failing; bad samples are quarantined."""
    try:
        return _write(job)
    except NeedsMemory as error:
        return TooLarge(job.shard.name, error.needed)


def _write(job: ShardJob) -> ShardResult:
    out, name = Location(job.out), job.shard.name
    rows: list[list[dict[str, Any]]] = [[] for _ in range(job.conversion.variants)]
    read = vanished = 0
    with ExitStack() as stack:
        tars = [
            stack.enter_context(TarWriter(out.child(tar_name(variant, name))))
            for variant in range(job.conversion.variants)
        ]
        for planned, data in _read_all(job):
            vanished += data is VANISHED
            _check_source(job, vanished)
            read += 0 if isinstance(data, Fault) else len(data)
            members, source_sha256 = convert(job.conversion, planned.source, data)
            if job.rescue and isinstance(members, Fault):
                continue
            for variant, tar in enumerate(tars):
                row = _row(planned, source_sha256)
                if isinstance(members, Fault):
                    row.update(status=QUARANTINED, reason=members.reason)
                else:
                    row.update(_append(tar, members[variant]))
                rows[variant].append(row)
        if rows[0]:
            for tar in tars:
                tar.publish()
    if rows[0]:
        for variant, tar in enumerate(tars):
            out.child(index_name(variant, name)).write(_index_bytes(rows[variant], job, tar))
    ok = sum(row["status"] == OK for row in rows[0])
    return ShardResult(name, ok, len(rows[0]) - ok, read, sum(tar.size for tar in tars))


def _check_source(job: ShardJob, vanished: int) -> None:
    """A disk that was unmounted looks like images that are missing: those would be written off for good."""
    allowed = job.conversion.config.max_missing * len(job.shard.samples)
    if vanished > allowed:
        raise OSError(
            f"{vanished} of the shard's {len(job.shard.samples)} images have gone from "
            f"{job.conversion.source.url} since it was listed; bring them back, or allow it by max_missing"
        )


def _read_all(job: ShardJob) -> Iterator[tuple[PlannedSample, bytes | Fault]]:
    """Each sample with its bytes. From a store several are read at a time, ahead of need."""
    if job.conversion.source.is_local:
        for planned in job.shard.samples:
            yield planned, read_sample(job.conversion, planned)
        return
    ahead: deque[tuple[PlannedSample, Future[bytes | Fault]]] = deque()
    readers = ThreadPoolExecutor(READERS)
    try:
        for planned in job.shard.samples:
            ahead.append((planned, readers.submit(read_sample, job.conversion, planned)))
            while len(ahead) > READERS or _size(ahead) > READ_AHEAD_BYTES:
                first, data = ahead.popleft()
                yield first, data.result()
        for planned, data in ahead:
            yield planned, data.result()
    finally:  # after a failure, none is begun that waits as long for the store again
        readers.shutdown(cancel_futures=True)


def _size(ahead: "deque[tuple[PlannedSample, Future[bytes | Fault]]]") -> int:
    return sum(planned.source.size_bytes for planned, _ in ahead)


def _row(planned: PlannedSample, source_sha256: str | None) -> dict[str, Any]:
    row = dict.fromkeys(INDEX_SCHEMA.names)
    row.update(
        key=planned.source.key,
        origin=planned.source.origin,
        run=planned.run,
        source_sha256=source_sha256,
        # Of a quarantined sample too: it can be forgotten.
        identities=identities_of(planned.source.persons),
    )
    return row


def _append(tar: TarWriter, member: Member) -> dict[str, Any]:
    """Adds image and annotation to the tar; returns their part of the index row."""
    annotation = member.annotation
    return {
        "status": OK,
        "image_type": member.image_type,
        "image_offset": tar.add(f"{annotation.key}.{member.image_type}", member.image),
        "image_size": len(member.image),
        "json_offset": tar.add(f"{annotation.key}.json", member.text),
        "json_size": len(member.text),
        "width": annotation.width,
        "height": annotation.height,
        **summarise(annotation.persons),
    }


def _index_bytes(rows: list[dict[str, Any]], job: ShardJob, tar: TarWriter) -> bytes:
    metadata = {
        "plan_hash": job.plan_hash,
        "plan": json.dumps(job.description, sort_keys=True),
        "tar_bytes": str(tar.size),
        "tar_sha256": tar.sha256,
    }
    return parquet_bytes(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata(metadata)))
