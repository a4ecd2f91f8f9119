"""Proves one shard of one variant: its bytes hashed, its tar read by webdataset's own reader.

What is wrong comes back as sentences. Nothing is believed because our own writer wrote it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from webdataset import tariterators

from pipeline.annotation import Annotation
from pipeline.shards import (
    FORGOTTEN,
    INDEX_SCHEMA,
    MANIFEST,
    OK,
    QUARANTINED,
    Manifest,
    Shard,
    index_name,
    tar_name,
)
from pipeline.store import Location
from sharding.image import Fault, open_image
from sharding.index import WrittenIndex, read_index
from sharding.tar import file_sha256, local_copy

SHOWN = 20
"""Problems that are named; of more, the number."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ShardCheck:
    """All that a worker needs to check one shard of one variant."""

    url: str
    shard: Shard
    first: Shard
    """The same shard in the first variant."""
    plan_hash: str
    labels: dict[str, str]
    """What every annotation of the set says alike: dataset, domain, split, task."""


def shard_checks(url: str, manifest: Manifest) -> Iterator[ShardCheck]:
    first = {shard.name: shard for shard in manifest.shards if shard.variant == 0}
    labels = {name: getattr(manifest, name) for name in ("dataset", "domain", "split", "task")}
    for shard in manifest.shards:
        yield ShardCheck(url, shard, first.get(shard.name, shard), manifest.plan_hash, labels)


def check_shard(check: ShardCheck) -> list[str]:
    """What is wrong with it, whatever the others are like. Raises OSError if the store keeps failing."""
    shard, root = check.shard, Location(check.url)
    name, tar = index_name(shard.variant, shard.name), tar_name(shard.variant, shard.name)
    written = read_index(root.child(name))
    if written is None:
        return [f"{name}: missing or damaged"]
    if written.sha256 != shard.index_sha256:
        return [f"{name}: sha256 is not the one in {MANIFEST}"]
    problems = [f"{name}: {problem}" for problem in _check_index(check, root, written)]
    rows = written.table.filter(pc.equal(written.table["status"], OK)).to_pylist()
    found = (f"{tar}: {problem}" for problem in _check_tar(check, root.child(tar), rows))
    return problems + shortened(found)


def shortened(problems: Iterator[str]) -> list[str]:
    """The first ones and how many more there are, so that a wholly broken set stays readable."""
    shown = list(islice(problems, SHOWN))
    more = sum(1 for _ in problems)
    return [*shown, f"... and {more} more"] if more else shown


def _check_index(check: ShardCheck, root: Location, written: WrittenIndex) -> Iterator[str]:
    shard, table = check.shard, written.table
    if written.plan_hash != check.plan_hash:
        yield "belongs to another plan"
    if (written.tar_sha256, written.tar_bytes) != (shard.tar_sha256, shard.tar_bytes):
        yield f"names another tar than {MANIFEST} does"
    found = (len(table), *(written.count(status) for status in (OK, QUARANTINED, FORGOTTEN)))
    if found != (shard.planned, shard.ok, shard.quarantined, shard.forgotten):
        yield f"(planned, ok, quarantined, forgotten) are {found}, not as in {MANIFEST}"
    if len(table) != sum(found[1:]):
        yield "has rows of an unknown status"
    yield from _check_rows(table)
    if shard.variant != 0:
        first = read_index(root.child(index_name(0, check.first.name)))
        columns = ["key", "status", "run", "identities"]
        if first is not None and not table.select(columns).equals(first.table.select(columns)):
            yield "other samples than in variant 0"


def _check_rows(table: pa.Table) -> Iterator[str]:
    keyless = pc.is_null(table["key"])
    if pc.any(pc.and_(keyless, pc.equal(table["status"], OK))).as_py():
        yield "has a usable sample without a key"
    if table.filter(pc.equal(table["status"], QUARANTINED))["reason"].null_count:
        yield "has a quarantined sample without a reason"
    gone = table.filter(pc.or_(keyless, pc.equal(table["status"], FORGOTTEN)))
    kept = [name for name in INDEX_SCHEMA.names if name not in ("status", "reason", "run")]
    for name in kept:
        if gone[name].null_count < len(gone):
            yield f"still has the {name} of a forgotten sample"


def _check_tar(check: ShardCheck, location: Location, rows: list[Row]) -> Iterator[str]:
    try:
        with local_copy(location) as path:
            if path.stat().st_size != check.shard.tar_bytes:
                yield f"{path.stat().st_size} bytes, {check.shard.tar_bytes} in {MANIFEST}"
            if file_sha256(path) != check.shard.tar_sha256:
                yield f"sha256 is not the one in {MANIFEST}"
            yield from _check_samples(check, path, rows)
    except FileNotFoundError:
        yield "missing"


def _check_samples(check: ShardCheck, path: Path, rows: list[Row]) -> Iterator[str]:
    """Reads the tar as any user of webdataset would."""
    expected = iter(rows)
    try:
        with open(path, "rb") as stream, open(path, "rb") as direct:
            files = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            for sample in tariterators.group_by_keys(files):
                row = next(expected, None)
                if row is None or sample["__key__"] != row["key"]:
                    yield f"holds {sample['__key__']!r} where the index says {row and row['key']!r}"
                    return
                problems = _check_sample(check, sample, row, direct)
                yield from (f"{row['key']}: {problem}" for problem in problems)
    except Exception as error:  # whatever a damaged tar makes the reader raise
        yield f"webdataset cannot read it: {error.args[0] if error.args else error!r}"
        return
    if (row := next(expected, None)) is not None:
        yield f"lacks {row['key']!r} and what follows it in the index"


def _check_sample(
    check: ShardCheck, sample: Mapping[str, Any], row: Row, file: Any
) -> Iterator[str]:
    members = {name: data for name, data in sample.items() if not name.startswith("__")}
    if members.keys() != {row["image_type"], "json"}:
        yield f"members are {sorted(members)}"
        return
    for name, data in (("image", members[row["image_type"]]), ("json", members["json"])):
        file.seek(row[f"{name}_offset"])
        if len(data) != row[f"{name}_size"] or file.read(len(data)) != data:
            yield f"{name} does not lie where the index says"
    image = open_image(members[row["image_type"]], keep_metadata=True)
    if isinstance(image, Fault):
        yield image.reason
    elif (image.width, image.height) != (row["width"], row["height"]):
        yield f"image of {image.width}x{image.height}, index says {row['width']}x{row['height']}"
    yield from _check_annotation(check, members["json"], row)


def _check_annotation(check: ShardCheck, data: bytes, row: Row) -> Iterator[str]:
    try:
        annotation = Annotation.from_json(data)
    except ValueError as error:
        yield f"annotation does not validate: {' '.join(str(error).split())}"
        return
    ignored = sum(person.ignore for person in annotation.persons)
    identities = {person.identity for person in annotation.persons if person.identity is not None}
    said = {
        "key": annotation.key,
        "origin": annotation.source,
        "width": annotation.width,
        "height": annotation.height,
        "persons": len(annotation.persons) - ignored,
        "ignored": ignored,
        "identities": sorted(identities),
    }
    for name, value in said.items():
        if row[name] != value:
            yield f"{name} is {value!r} in the annotation and {row[name]!r} in the index"
    for name, value in check.labels.items():
        if getattr(annotation, name) != value:
            yield f"{name} is {getattr(annotation, name)!r}, and {value!r} in {MANIFEST}"
    if annotation.canvas is not None and annotation.canvas.variant != check.shard.variant:
        yield f"is a canvas of variant {annotation.canvas.variant}"
