"""What already lies at an output, and what is written there last: quarantine and manifest."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.shards import (
    INDEX_SCHEMA,
    MANIFEST,
    OK,
    QUARANTINE,
    QUARANTINED,
    CountCheck,
    Manifest,
    Shard,
    index_name,
    sha256,
)
from pipeline.store import Location
from sharding.datasets.base import Adapter, Listing
from sharding.plan import PLAN_VERSION, Plan, deciding_settings, differences
from sharding.writer import parquet_bytes

LARGEST_GROUPS = 3


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

    @classmethod
    def parse(cls, data: bytes) -> "WrittenIndex":
        """Raises whatever pyarrow has for damaged bytes, KeyError or ValueError."""
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
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
        )

    def count(self, status: str) -> int:
        return int(pc.sum(pc.equal(self.table["status"], status)).as_py() or 0)


def check_destination(out: Location) -> None:
    """Raises UserError if nothing can be written below `out`, before hours went into it."""
    if out.is_local:
        nearest = next(p for p in (Path(out.path), *Path(out.path).parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UserError(
                f"cannot write to {out.url}: {nearest} is not a folder one may write to."
            )
    elif out.url.startswith("memory://"):
        raise UserError(
            f"cannot write to {out.url}: workers are processes of their own and share no memory. Name a "
            "folder or an object store."
        )
    else:
        _check_bucket(out)


def _check_bucket(out: Location) -> None:
    bucket = out.url.partition("://")[2].split("/")[0]
    if not bucket:
        raise UserError(
            f"{out.url} names no bucket; write {out.url.partition('://')[0]}://BUCKET/..."
        )
    try:
        out.fs.info(bucket)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"cannot write to {out.url}: there is no bucket {bucket!r}. Create it first."
        ) from None
    except PermissionError as error:
        raise UserError(
            f"cannot write to {out.url}: not allowed to use the bucket {bucket!r} ({error}). Check the "
            "store's environment variables or credential file."
        ) from None
    except Exception as error:  # each store's client has errors of its own
        raise UserError(f"cannot reach {out.url}: {type(error).__name__}: {error}") from None


def finished_shards(out: Location, plan: Plan) -> set[str]:
    """Names of the shards of `plan` that are complete in all variants.

    Raises UserError, naming the difference, if another plan's shards lie there.
    """
    files = set(out.list_files())
    done = set()
    for name in sorted(file for file in files if file.startswith("shards/")):
        if name.endswith(".parquet") and (written := read_index(out.child(name))) is not None:
            _refuse_other_plan(out, plan, written)
            if _tar_is_whole(out, files, name, written):
                done.add(name)
    return {
        shard.name
        for shard in plan.shards
        if all(index_name(variant, shard.name) in done for variant in range(plan.variants))
    }


def read_index(location: Location) -> WrittenIndex | None:
    """None if there is none, or it is damaged."""
    try:
        data = location.read()
    except FileNotFoundError:
        return None
    try:
        return WrittenIndex.parse(data)
    except (OSError, pa.ArrowException, KeyError, ValueError):  # of parsing: `data` is in memory
        return None


def _refuse_other_plan(out: Location, plan: Plan, written: WrittenIndex) -> None:
    if written.plan_hash == plan.hash:
        return
    changed = "; ".join(differences(written.plan, plan.description()))
    raise UserError(
        f"{out.url} holds shards of another plan ("
        f"{changed or 'same settings, but names, sizes or annotations in the source changed'}). "
        "Write to another URL, or remove what is there first."
    )


def _tar_is_whole(out: Location, files: set[str], name: str, written: WrittenIndex) -> bool:
    tar = name.removesuffix(".parquet") + ".tar"
    return tar in files and out.child(tar).size() == written.tar_bytes


def finish(out: Location, plan: Plan, adapter: Adapter, listing: Listing) -> Manifest:
    """Writes quarantine.parquet and, last of all, the manifest. Every shard must be there.

    Raises UserError, and writes no manifest, if no sample could be used.
    """
    _remove_temporaries(out)
    shards, tables = [], []
    for shard, written in _written_shards(out, plan):
        shards.append(shard)
        if shard.variant == 0:
            tables.append(written.table)
    rows = pa.concat_tables(tables)
    quarantined = rows.filter(pc.equal(rows["status"], QUARANTINED))
    out.child(QUARANTINE).write(parquet_bytes(quarantined))
    if len(quarantined) == len(rows):
        raise UserError(
            f"{plan.dataset} {plan.split}: not one sample could be used ({_grouped(quarantined)}; see "
            f"{out.child(QUARANTINE).url}). Look at the source, and remove {out.url} before the next try."
        )
    manifest = _manifest(plan, adapter, listing, shards, rows)
    out.child(MANIFEST).write(manifest.to_json())
    return manifest


def quarantine_summary(out: Location) -> str:
    """`12 missing from the source, 1 truncated JPEG; see .../quarantine.parquet`, of a finished set."""
    location = out.child(QUARANTINE)
    return f"{_grouped(pq.read_table(pa.BufferReader(location.read())))}; see {location.url}"


def _grouped(quarantined: pa.Table) -> str:
    """How many rows have which reason, the most frequent ones by name."""
    groups = Counter(quarantined["reason"].to_pylist()).most_common()
    shown = [f"{number:,} {reason}" for reason, number in groups[:LARGEST_GROUPS]]
    if rest := sum(number for _, number in groups[LARGEST_GROUPS:]):
        shown.append(f"{rest:,} for other reasons")
    return ", ".join(shown)


def _written_shards(out: Location, plan: Plan) -> Iterator[tuple[Shard, WrittenIndex]]:
    for variant in range(plan.variants):
        for planned in plan.shards:
            written = read_index(out.child(index_name(variant, planned.name)))
            if written is None:
                raise UserError(
                    f"{out.url}/{index_name(variant, planned.name)} vanished while the job ran: run it again."
                )
            yield _shard(planned.name, variant, written), written


def _shard(name: str, variant: int, written: WrittenIndex) -> Shard:
    return Shard(
        name=name,
        variant=variant,
        tar_bytes=written.tar_bytes,
        tar_sha256=written.tar_sha256,
        index_sha256=written.sha256,
        planned=written.table.num_rows,
        ok=written.count(OK),
        quarantined=written.count(QUARANTINED),
    )


def _manifest(
    plan: Plan, adapter: Adapter, listing: Listing, shards: list[Shard], rows: pa.Table
) -> Manifest:
    def total(column: str) -> int:
        return int(pc.sum(rows[column]).as_py() or 0)

    identities = pc.unique(pc.list_flatten(rows["identities"])).to_pylist()
    settings: dict[str, Any] = {
        "plan_version": PLAN_VERSION,
        **deciding_settings(plan.config, plan.task),
    }
    return Manifest(
        dataset=plan.dataset,
        domain=plan.dataset,
        split=plan.split,
        task=plan.task,
        shards=tuple(shards),
        variants=plan.variants,
        samples=sum(shard.ok for shard in shards if shard.variant == 0),
        quarantined=sum(shard.quarantined for shard in shards if shard.variant == 0),
        excluded=plan.excluded,
        source_samples=plan.source_samples,
        persons=total("persons"),
        ignored=total("ignored"),
        identities=tuple(sorted(identities)),
        counts=compare_counts(adapter, plan.split, listing),
        settings=settings,
        plan_hash=plan.hash,
        licence=adapter.licence,
    )


def compare_counts(adapter: Adapter, split: str, listing: Listing) -> tuple[CountCheck, ...]:
    """Each published figure that the listing counted too."""
    return tuple(
        CountCheck(
            what=published.what,
            published=published.number,
            found=listing.found[published.what],
            evidence=published.evidence,
        )
        for published in adapter.splits[split]
        if published.what in listing.found
    )


def _remove_temporaries(out: Location) -> None:
    """What killed writers left. A live second writer loses a scratch file at most, and tries again."""
    if out.is_local:
        for scratch in Path(out.path).rglob(".*.tmp"):
            scratch.unlink(missing_ok=True)
