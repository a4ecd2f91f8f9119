"""Writes one shard: every variant's tar and index, the same bytes whoever writes it and how often.

The tar is published first and its index after it, each whole or not at all, so that an index in its
place is the one mark of a finished shard. Two writers of one shard at once do no harm.
"""

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.annotation import MAX_JSON_BYTES, Annotation, Person
from pipeline.shards import INDEX_SCHEMA, OK, QUARANTINED, index_name, sha256, tar_name
from pipeline.store import Location, retry
from sharding.canvas import place_crop
from sharding.datasets.base import MISSING, Adapter, SourceSample
from sharding.image import CodedImage, Fault, open_image
from sharding.plan import PlanConfig, PlannedSample, ShardPlan
from sharding.tar import TarWriter


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to write one shard."""

    adapter: Adapter
    source: Path
    split: str
    shard: ShardPlan
    config: PlanConfig
    variants: int
    out: str
    plan_hash: str
    description: dict[str, Any]
    """Of the plan: stored in each index, so that a later, different plan can name the difference."""


@dataclass(frozen=True)
class ShardResult:
    name: str
    ok: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class _Member:
    """What one variant's tar holds for one sample."""

    image: bytes
    image_type: str
    annotation: Annotation
    text: bytes


def write_shard(job: ShardJob) -> ShardResult:
    """Raises OSError if the source or the destination keeps failing; bad samples are quarantined."""
    out = Location(job.out)
    names = [tar_name(variant, job.shard.name) for variant in range(job.variants)]
    rows: list[list[dict[str, Any]]] = [[] for _ in names]
    with ExitStack() as stack:
        tars = [stack.enter_context(TarWriter(out.child(name))) for name in names]
        for planned in job.shard.samples:
            members, source_sha256 = _make_members(job, planned)
            for variant, tar in enumerate(tars):
                row = _row(planned, source_sha256)
                if isinstance(members, Fault):
                    row.update(status=QUARANTINED, reason=members.reason)
                else:
                    row.update(_append(tar, members[variant]))
                rows[variant].append(row)
        for tar in tars:
            tar.publish()
    for variant, tar in enumerate(tars):
        location = out.child(index_name(variant, job.shard.name))
        location.write(_index_bytes(rows[variant], job, tar))
    counts = Counter(row["status"] for row in rows[0])
    return ShardResult(job.shard.name, counts[OK], counts[QUARANTINED])


def _make_members(
    job: ShardJob, planned: PlannedSample
) -> tuple[list[_Member] | Fault, str | None]:
    """The sample in every variant, and the sha256 of its source bytes."""
    data = Fault(planned.fault) if planned.fault else _read(job, planned.source)
    if isinstance(data, Fault):
        return data, None
    image = open_image(data, job.config.keep_metadata)
    if isinstance(image, CodedImage):
        try:
            return _decoded_members(job, planned.source, image), sha256(data)
        except ValidationError as error:
            return Fault(f"invalid annotation: {error.errors()[0]['msg']}"), sha256(data)
    return image, sha256(data)


def _read(job: ShardJob, sample: SourceSample) -> bytes | Fault:
    try:
        return retry(lambda: job.adapter.read(job.source, sample.locator))
    except FileNotFoundError:
        if not job.source.exists():
            raise OSError(f"the source {job.source} has gone") from None
        return Fault(MISSING)
    except ValueError as error:
        return Fault(f"unreadable: {error}")


def _decoded_members(
    job: ShardJob, sample: SourceSample, image: CodedImage
) -> list[_Member] | Fault:
    expected = sample.expected_size
    if expected is not None and expected != (image.width, image.height):
        return Fault(f"annotated as {expected[0]}x{expected[1]}, is {image.width}x{image.height}")
    if job.adapter.task == "reid":
        return _canvases(job, sample, image)
    if job.config.check == "full" and isinstance(fault := image.decode(), Fault):
        return fault
    annotation = _annotation(job, sample, image.width, image.height, sample.persons)
    text = annotation.to_json()
    if len(text) > MAX_JSON_BYTES:
        return Fault(f"annotation of {len(text)} bytes, more than {MAX_JSON_BYTES}")
    return [_Member(image.data, image.type, annotation, text)]


def _canvases(job: ShardJob, sample: SourceSample, image: CodedImage) -> list[_Member] | Fault:
    crop = image.decode()
    if isinstance(crop, Fault):
        return crop
    config = job.config.canvas
    (person,) = sample.persons
    members = []
    for variant in range(job.variants):
        placed = place_crop(crop, config, job.config.seed, sample.key, variant)
        annotation = _annotation(
            job,
            sample,
            config.size[1],
            config.size[0],
            (person.model_copy(update={"box": placed.box}),),
            crop_size=(image.width, image.height),
            canvas=placed.canvas,
        )
        members.append(_Member(placed.jpeg, "jpg", annotation, annotation.to_json()))
    return members


def _annotation(
    job: ShardJob,
    sample: SourceSample,
    width: int,
    height: int,
    persons: tuple[Person, ...],
    **canvas: Any,
) -> Annotation:
    return Annotation(
        version=1,
        key=sample.key,
        dataset=job.adapter.name,
        domain=job.adapter.name,
        split=job.split,
        task=job.adapter.task,
        width=width,
        height=height,
        persons=persons,
        tags=sample.tags,
        source=sample.origin,
        extra=sample.extra,
        **canvas,
    )


def _row(planned: PlannedSample, source_sha256: str | None) -> dict[str, Any]:
    row = dict.fromkeys(INDEX_SCHEMA.names)
    row.update(
        key=planned.source.key,
        origin=planned.source.origin,
        run=planned.run,
        source_sha256=source_sha256,
    )
    return row


def _append(tar: TarWriter, member: _Member) -> dict[str, Any]:
    """Adds image and annotation to the tar; returns their part of the index row."""
    annotation = member.annotation
    ignored = sum(person.ignore for person in annotation.persons)
    identities = {person.identity for person in annotation.persons if person.identity is not None}
    return {
        "status": OK,
        "image_type": member.image_type,
        "image_offset": tar.add(f"{annotation.key}.{member.image_type}", member.image),
        "image_size": len(member.image),
        "json_offset": tar.add(f"{annotation.key}.json", member.text),
        "json_size": len(member.text),
        "width": annotation.width,
        "height": annotation.height,
        "persons": len(annotation.persons) - ignored,
        "ignored": ignored,
        "identities": sorted(identities),
    }


def _index_bytes(rows: list[dict[str, Any]], job: ShardJob, tar: TarWriter) -> bytes:
    metadata = {
        "plan_hash": job.plan_hash,
        "plan": json.dumps(job.description, sort_keys=True),
        "tar_bytes": str(tar.size),
        "tar_sha256": tar.sha256,
    }
    return parquet_bytes(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata(metadata)))


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()
