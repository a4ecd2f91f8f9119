"""Proves one shard of one variant: its bytes hashed, its tar read by webdataset's own reader.

What is wrong comes back as sentences. Nothing is believed because our own writer wrote it.
"""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from webdataset import tariterators

from pipeline.annotation import summarise
from pipeline.foreign.reader import IMAGE_EXTENSIONS, printable
from pipeline.shards import (
    FORGOTTEN,
    INDEX_SCHEMA,
    MANIFEST,
    OK,
    QUARANTINED,
    Manifest,
    Shard,
    ShardSet,
    index_name,
    tar_name,
)
from pipeline.stores.local import file_sha256, local_copy
from pipeline.stores.store import Location
from pipeline.written import WrittenIndex, read_index
from sharding.image import Fault, open_image

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
    plain: Manifest
    """The set's, without what grows with it."""


def shard_checks(url: str, manifest: Manifest) -> Iterator[ShardCheck]:
    first = {shard.name: shard for shard in manifest.shards if shard.variant == 0}
    plain = manifest.model_copy(update={"shards": (), "identities": ()})
    for shard in manifest.shards:
        yield ShardCheck(url, shard, first.get(shard.name, shard), plain)


def check_shard(check: ShardCheck) -> list[str]:
    """What is wrong with it, whatever the others are like.

    Raises OSError if the store keeps failing, or this machine does not see the set at all.
    """
    problems = _problems(check)
    if problems and not Location(check.url).child(MANIFEST).exists():
        raise OSError(
            f"{check.url}/{MANIFEST} is not seen from {socket.gethostname()}: nothing is known of the set. "
            "It must have one path on all nodes: a shared file system or a store"
        )
    return problems


def _problems(check: ShardCheck) -> list[str]:
    shard, shard_set = check.shard, ShardSet(check.url)
    root, tar = shard_set.location, shard_set.tar(shard)
    name = index_name(shard.variant, shard.name)
    written = read_index(root.child(name))
    if written is None:
        return [f"{name}: missing or damaged"]
    if written.sha256 != shard.index_sha256:
        return [f"{name}: sha256 is not the one in {MANIFEST}"]
    problems = [f"{name}: {problem}" for problem in _check_index(check, root, written)]
    # A tar of another tool still holds what was quarantined.
    rows = written.table if check.plain.foreign else written.table.filter(_is_ok(written.table))
    label = shard.tar or tar_name(shard.variant, shard.name)
    found = (f"{label}: {problem}" for problem in _check_tar(check, tar, rows.to_pylist()))
    return problems + shortened(found)


def _is_ok(table: pa.Table) -> pa.ChunkedArray:
    return pc.equal(table["status"], OK)


def shortened(problems: Iterator[str]) -> list[str]:
    """The first ones and how many more there are, so that a wholly broken set stays readable."""
    shown = list(islice(problems, SHOWN))
    more = sum(1 for _ in problems)
    return [*shown, f"... and {more} more"] if more else shown


def _check_index(check: ShardCheck, root: Location, written: WrittenIndex) -> Iterator[str]:
    shard, table = check.shard, written.table
    if written.plan_hash != check.plain.plan_hash:
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
    if pc.any(pc.and_(keyless, _is_ok(table))).as_py():
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
                if row is None or not _is_of(check, sample["__key__"], row):
                    yield f"holds {sample['__key__']!r} where the index says {row and row['key']!r}"
                    return
                if row["status"] != OK:
                    continue
                problems = _check_sample(check, sample, row, direct)
                yield from (f"{row['key']}: {problem}" for problem in problems)
    except Exception as error:  # whatever a damaged tar makes the reader raise
        yield f"webdataset cannot read it: {error.args[0] if error.args else error!r}"
        return
    if (row := next(expected, None)) is not None:
        yield f"lacks {row['key']!r} and what follows it in the index"


def _is_of(check: ShardCheck, name: str, row: Row) -> bool:
    """Whether the index's row is of the sample that the tar calls so."""
    named = check.plain.foreign and str(row["origin"]).endswith(f"/{printable(name)}")
    return bool(named or row["key"] == name)


def _check_sample(
    check: ShardCheck, sample: Mapping[str, Any], row: Row, file: Any
) -> Iterator[str]:
    members = {name: data for name, data in sample.items() if not name.startswith("__")}
    images = [data for name, data in members.items() if name in IMAGE_EXTENSIONS]
    ours = members.keys() == {row["image_type"], "json"}
    if len(images) != 1 or not (ours or check.plain.foreign):
        yield f"members are {sorted(members)}"
        return
    annotation = members.get("json", b"")
    for name, data in (("image", images[0]), ("json", annotation)):
        file.seek(row[f"{name}_offset"])
        if len(data) != row[f"{name}_size"] or file.read(len(data)) != data:
            yield f"{name} does not lie where the index says"
    image = open_image(images[0], keep_metadata=True)
    if isinstance(image, Fault):
        yield image.reason
    elif (image.width, image.height) != (row["width"], row["height"]):
        yield f"image of {image.width}x{image.height}, index says {row['width']}x{row['height']}"
    yield from _check_annotation(check, annotation, row)


def _check_annotation(check: ShardCheck, data: bytes, row: Row) -> Iterator[str]:
    plain = check.plain
    try:
        annotation = plain.annotation(data, row["key"], (row["height"], row["width"]))
    except ValueError as error:
        yield f"annotation does not validate: {' '.join(str(error).split())}"
        return
    said = {
        "key": annotation.key,
        "origin": annotation.source if plain.fields is None else row["origin"],
        "width": annotation.width,
        "height": annotation.height,
        **summarise(annotation.persons),
    }
    for name, value in said.items():
        if row[name] != value:
            yield f"{name} is {value!r} in the annotation and {row[name]!r} in the index"
    for name in ("dataset", "domain", "split", "task"):
        found, expected = getattr(annotation, name), getattr(plain, name)
        if found != expected:
            yield f"{name} is {found!r}, and {expected!r} in {MANIFEST}"
    if annotation.canvas is not None and annotation.canvas.variant != check.shard.variant:
        yield f"is a canvas of variant {annotation.canvas.variant}"
