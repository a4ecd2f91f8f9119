"""Rewrites a shard, or a protocol, without what is to be forgotten: the rest is copied as it is."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.shards import (
    FORGOTTEN,
    INDEX_SCHEMA,
    MANIFEST,
    OK,
    QUARANTINED,
    Shard,
    index_name,
    parquet_bytes,
    protocol_name,
    read_parquet,
    sha256,
    tar_name,
)
from pipeline.stores.local import file_sha256, local_copy
from pipeline.stores.store import Location
from pipeline.written import WrittenIndex, read_index
from sharding.protocols import restrict
from sharding.tar import TarWriter


def rewrite(root: Location, shard: Shard, keys: frozenset[str], generation: int) -> Shard:
    """Writes `shard` without the samples of `keys`, under its new name."""
    name = index_name(shard.variant, shard.name)
    written = checked(root, name, shard, read_index(root.child(name)))
    rows = [_tombstone(row) if row["key"] in keys else row for row in written.table.to_pylist()]
    new_name = f"{shard.name.partition('-')[0]}-g{generation}"
    with TarWriter(root.child(tar_name(shard.variant, new_name))) as tar:
        _copy_members(root, shard, rows, tar)
        tar.publish()
    metadata = {
        "plan_hash": written.plan_hash,
        "plan": json.dumps(written.plan, sort_keys=True),
        "tar_bytes": str(tar.size),
        "tar_sha256": tar.sha256,
    }
    index = parquet_bytes(pa.Table.from_pylist(rows, INDEX_SCHEMA.with_metadata(metadata)))
    root.child(index_name(shard.variant, new_name)).write(index)
    ok = sum(row["status"] == OK for row in rows)
    return replace(
        shard,
        name=new_name,
        tar_bytes=tar.size,
        tar_sha256=tar.sha256,
        index_sha256=sha256(index),
        ok=ok,
        forgotten=shard.forgotten + shard.ok - ok,
    )


def _tombstone(row: Mapping[str, Any]) -> dict[str, Any]:
    """A quarantined sample has no place in the stream and gets none by being forgotten."""
    gone = {**dict.fromkeys(INDEX_SCHEMA.names), "status": FORGOTTEN, "run": row["run"]}
    if row["status"] == QUARANTINED:
        gone.update(status=QUARANTINED, reason=FORGOTTEN)
    return gone


def _copy_members(root: Location, shard: Shard, rows: list[dict[str, Any]], tar: TarWriter) -> None:
    """Copies what `rows` still hold and moves their offsets. Raises UserError on a damaged tar."""
    name = tar_name(shard.variant, shard.name)
    try:
        with local_copy(root.child(name)) as path, open(path, "rb") as old:
            if file_sha256(path) != shard.tar_sha256:
                raise UserError(damaged(root, name))
            for row in rows:
                for member, ending in (("image", row["image_type"]), ("json", "json")):
                    if row["status"] == OK:
                        old.seek(row[f"{member}_offset"])
                        data = old.read(row[f"{member}_size"])
                        row[f"{member}_offset"] = tar.add(f"{row['key']}.{ending}", data)
    except FileNotFoundError:
        raise UserError(damaged(root, name)) from None


def protocol_without(
    root: Location, name: str, expected: str, identities: Collection[str], known: pa.Array
) -> bytes:
    """The protocol without queries for `identities` and without any key but those in `known`."""
    try:
        data = root.child(protocol_name(name)).read()
    except FileNotFoundError:
        data = b""
    if sha256(data) != expected:
        raise UserError(damaged(root, protocol_name(name)))
    table = read_parquet(data)
    asked = pc.is_in(table["identity"], pa.array(sorted(identities), pa.string()))
    return parquet_bytes(restrict(table.filter(pc.invert(asked)), known))


def checked(root: Location, name: str, shard: Shard, written: WrittenIndex | None) -> WrittenIndex:
    """`written`. Raises UserError unless it is the index that the manifest names."""
    if written is None or written.sha256 != shard.index_sha256:
        raise UserError(damaged(root, name))
    return written


def damaged(root: Location, name: str) -> str:
    """For a UserError."""
    return (
        f"{root.url}/{name} is not the file that {MANIFEST} names, so nothing was forgotten. `python -m "
        f"sharding verify {root.url}` tells what else is wrong; bring the file back as it was written."
    )
