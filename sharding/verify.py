"""Proves a shard set whole: every byte hashed, every tar read by webdataset's own reader, every sum redone.

What is wrong comes back as sentences. Nothing is believed because our own writer wrote it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from webdataset import tariterators

from pipeline.annotation import Annotation
from pipeline.shards import (
    FORGOTTEN,
    MANIFEST,
    OK,
    QUARANTINE,
    QUARANTINED,
    Manifest,
    Shard,
    ShardSet,
    index_name,
    tar_name,
)
from pipeline.store import Location
from sharding.image import Fault, open_image
from sharding.output import WrittenIndex, read_index

SHOWN = 20

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    url: str
    manifest: Manifest
    problems: list[str]

    def lines(self) -> list[str]:
        manifest = self.manifest
        tars = sum(shard.tar_bytes for shard in manifest.shards)
        summary = (
            f"{manifest.dataset} {manifest.split} at {self.url}: {len(manifest.shards)} shards, "
            f"{tars / 1e6:,.1f} MB, {manifest.samples:,} samples in {manifest.variants} variant(s), "
            f"{manifest.persons:,} persons, {len(manifest.identities):,} identities, "
            f"{manifest.quarantined:,} quarantined, {sum(manifest.excluded.values()):,} excluded"
        )
        if not self.problems:
            return [f"{summary}: whole."]
        more = len(self.problems) - SHOWN
        rest = [f"... and {more} more"] if more > 0 else []
        return [f"{summary}: DAMAGED.", *self.problems[:SHOWN], *rest]


def verify(url: str) -> Report:
    """Raises UserError if there is no finished shard set at `url`."""
    shard_set = ShardSet(url)
    manifest = shard_set.manifest
    problems: list[str] = []
    indexes: dict[tuple[int, str], pa.Table] = {}
    for shard in manifest.shards:
        found, table = check_shard(shard_set.location, manifest, shard)
        problems += found
        if table is not None:
            indexes[shard.variant, shard.name] = table
    problems += _foreign_files(shard_set.location, manifest)
    if len(indexes) == len(manifest.shards):
        problems += _check_sums(manifest, indexes)
        problems += _check_quarantine(shard_set.location, manifest, indexes)
    return Report(url, manifest, problems)


def check_shard(
    root: Location, manifest: Manifest, shard: Shard
) -> tuple[list[str], pa.Table | None]:
    """What is wrong with one shard, and its index if that is readable. Independent of all others."""
    name = index_name(shard.variant, shard.name)
    written = read_index(root.child(name))
    if written is None:
        return [f"{name}: missing or damaged"], None
    if written.sha256 != shard.index_sha256:
        return [f"{name}: sha256 is not the one in {MANIFEST}"], None
    problems = [f"{name}: {problem}" for problem in _check_index(manifest, shard, written)]
    rows = [row for row in written.table.to_pylist() if row["status"] == OK]
    tar = tar_name(shard.variant, shard.name)
    problems += [f"{tar}: {problem}" for problem in _check_tar(root.child(tar), shard, rows)]
    return problems, written.table


def _check_index(manifest: Manifest, shard: Shard, written: WrittenIndex) -> Iterator[str]:
    if written.plan_hash != manifest.plan_hash:
        yield "belongs to another plan"
    if written.tar_sha256 != shard.tar_sha256:
        yield f"names another tar than {MANIFEST} does"
    counts = (written.table.num_rows, written.count(OK), written.count(QUARANTINED))
    if counts != (shard.planned, shard.ok, shard.quarantined):
        yield f"(planned, ok, quarantined) are {counts}, not as in {MANIFEST}"
    if shard.planned != shard.ok + shard.quarantined + shard.forgotten:
        yield "planned samples are not the sum of ok, quarantined and forgotten ones"


def _check_tar(location: Location, shard: Shard, rows: list[Row]) -> Iterator[str]:
    try:
        with _local_copy(location) as path:
            if path.stat().st_size != shard.tar_bytes:
                yield f"{path.stat().st_size} bytes, {shard.tar_bytes} in {MANIFEST}"
            if _file_sha256(path) != shard.tar_sha256:
                yield f"sha256 is not the one in {MANIFEST}"
            yield from _check_samples(path, rows)
    except FileNotFoundError:
        yield "missing"


@contextmanager
def _local_copy(location: Location) -> Iterator[Path]:
    if location.is_local:
        yield Path(location.path)
        return
    path = location.scratch()
    try:
        location.download(path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_samples(path: Path, rows: list[Row]) -> Iterator[str]:
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
                yield from (f"{row['key']}: {p}" for p in _check_sample(sample, row, direct))
    except Exception as error:  # whatever a damaged tar makes the reader raise
        yield f"webdataset cannot read it: {error.args[0] if error.args else error!r}"
        return
    if (row := next(expected, None)) is not None:
        yield f"lacks {row['key']!r} and what follows it in the index"


def _check_sample(sample: Mapping[str, Any], row: Row, file: Any) -> Iterator[str]:
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
    yield from _check_annotation(members["json"], row)


def _check_annotation(data: bytes, row: Row) -> Iterator[str]:
    try:
        annotation = Annotation.from_json(data)
    except ValueError as error:
        yield f"annotation does not validate: {' '.join(str(error).split())}"
        return
    ignored = sum(person.ignore for person in annotation.persons)
    identities = {person.identity for person in annotation.persons if person.identity is not None}
    said = {
        "key": annotation.key,
        "width": annotation.width,
        "height": annotation.height,
        "persons": len(annotation.persons) - ignored,
        "ignored": ignored,
        "identities": sorted(identities),
    }
    for name, value in said.items():
        if row[name] != value:
            yield f"{name} is {value!r} in the annotation and {row[name]!r} in the index"


def _foreign_files(root: Location, manifest: Manifest) -> Iterator[str]:
    known = {MANIFEST, QUARANTINE}
    for shard in manifest.shards:
        known |= {tar_name(shard.variant, shard.name), index_name(shard.variant, shard.name)}
    for name in root.list_files():
        if name not in known:
            yield f"{name}: does not belong to this shard set"


def _check_sums(manifest: Manifest, indexes: dict[tuple[int, str], pa.Table]) -> Iterator[str]:
    first = {name: table for (variant, name), table in indexes.items() if variant == 0}
    for (variant, name), table in indexes.items():
        if not table.select(["key", "status"]).equals(first[name].select(["key", "status"])):
            yield f"{index_name(variant, name)}: other samples than in variant 0"
    rows = pa.concat_tables(list(first.values()))
    keys = Counter(rows["key"].to_pylist())
    for key in sorted(key for key, count in keys.items() if count > 1):
        yield f"{key}: planned {keys[key]} times"
    statuses = Counter(rows["status"].to_pylist())
    sums = {
        "samples": statuses[OK],
        "quarantined": statuses[QUARANTINED],
        "persons": pc.sum(rows["persons"]).as_py() or 0,
        "ignored": pc.sum(rows["ignored"]).as_py() or 0,
        "identities": tuple(sorted(pc.unique(pc.list_flatten(rows["identities"])).to_pylist())),
    }
    left_out = statuses[QUARANTINED] + statuses[FORGOTTEN] + sum(manifest.excluded.values())
    if statuses[OK] + left_out != manifest.source_samples:
        yield (
            f"{MANIFEST}: {manifest.source_samples} samples in the source, {statuses[OK]} in shards and "
            f"{left_out} left out"
        )
    for name, value in sums.items():
        if getattr(manifest, name) != value:
            yield f"{MANIFEST}: {name} is not what the indexes add up to"


def _check_quarantine(
    root: Location, manifest: Manifest, indexes: dict[tuple[int, str], pa.Table]
) -> Iterator[str]:
    try:
        listed = pq.read_table(pa.BufferReader(root.child(QUARANTINE).read()))
    except FileNotFoundError:
        yield f"{QUARANTINE}: missing"
        return
    except (OSError, pa.ArrowException):
        yield f"{QUARANTINE}: damaged"
        return
    rows = pa.concat_tables(
        [indexes[0, shard.name] for shard in manifest.shards if shard.variant == 0]
    )
    if not listed.equals(rows.filter(pc.equal(rows["status"], QUARANTINED))):
        yield f"{QUARANTINE}: not the quarantined rows of the indexes"
