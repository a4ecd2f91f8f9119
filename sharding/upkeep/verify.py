"""Proves a shard set whole: every byte of every file hashed, every tar read, every sum redone.

Shards are checked one by one, here or wherever `run` takes them; this process then reads the first
variant's indexes and keeps of each shard only its keys and its part of the sums.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.accounting import ShardAccount, account_shard, add_up
from pipeline.shards import (
    MANIFEST,
    PROTOCOL_SCHEMA,
    QUARANTINE,
    Manifest,
    Shard,
    ShardSet,
    index_name,
    protocol_name,
    read_parquet,
    sha256,
    tar_name,
)
from pipeline.stores.store import Location
from pipeline.written import read_indexes
from sharding.upkeep.shard_check import SHOWN, ShardCheck, check_shard, shard_checks, shortened

OURS = ("shards/", "protocols/")
"""Folders that belong to a shard set, if it shares its place with another tool's files."""

Run = Callable[[Callable[[ShardCheck], list[str]], Iterable[ShardCheck]], Iterable[list[str]]]
"""Calls a picklable function with each of the arguments; yields the results in any order."""


@dataclass(frozen=True)
class Report:
    url: str
    manifest: Manifest
    problems: list[str]

    def lines(self) -> list[str]:
        manifest = self.manifest
        tars = sum(shard.tar_bytes for shard in manifest.shards)
        forgotten = f", {manifest.forgotten:,} forgotten" if manifest.forgotten else ""
        summary = (
            f"{manifest.dataset} {manifest.split} at {self.url}: {len(manifest.shards)} shards, "
            f"{tars / 1e6:,.1f} MB, {manifest.samples:,} samples in {manifest.variants} variant(s), "
            f"{manifest.persons:,} persons, {len(manifest.identities):,} identities, "
            f"{manifest.quarantined:,} quarantined, {sum(manifest.excluded.values()):,} excluded{forgotten}"
        )
        if not self.problems:
            return [f"{summary}: whole."]
        more = len(self.problems) - SHOWN
        rest = [f"... and {more} more"] if more > 0 else []
        return [f"{summary}: DAMAGED.", *self.problems[:SHOWN], *rest]


def verify(url: str, run: Run = map) -> Report:
    """Raises UserError if there is no finished shard set at `url`, or its manifest is damaged."""
    shard_set = ShardSet(url)
    manifest = shard_set.manifest
    problems = list(_check_manifest(manifest))
    for found in run(check_shard, shard_checks(url, manifest)):
        problems += found
    problems += shortened(_foreign_files(shard_set.location, manifest))
    read = list(_read_first_variant(shard_set))
    if len(read) == len(shard_set.shards()):
        problems += _check_plan(manifest, read)
        problems += _check_sums(shard_set, read)
        problems += _check_keys(read)
        problems += _check_protocols(shard_set, read)
    return Report(url, manifest, problems)


class _ReadIndex(NamedTuple):
    """What is kept of a shard of the first variant."""

    shard: Shard
    part: ShardAccount
    keys: pa.Array
    plan: dict[str, Any]


def _read_first_variant(shard_set: ShardSet) -> Iterator[_ReadIndex]:
    """Without the indexes that are not the ones that the manifest names."""
    shards = shard_set.shards()
    names = (index_name(0, shard.name) for shard in shards)
    for shard, (_, written) in zip(shards, read_indexes(shard_set.location, names), strict=True):
        if written is not None and written.sha256 == shard.index_sha256:
            keys = written.table["key"].drop_null().combine_chunks()
            yield _ReadIndex(shard, account_shard(shard, written.table), keys, written.plan)


def _check_manifest(manifest: Manifest) -> Iterator[str]:
    """What the manifest alone must fulfil."""
    listed = [(shard.variant, shard.name) for shard in manifest.shards]
    if len(set(listed)) < len(listed):
        yield f"{MANIFEST}: names a shard twice"
    if {variant for variant, _ in listed} != set(range(manifest.variants)):
        yield f"{MANIFEST}: has not the shards of {manifest.variants} variant(s)"
    first = _plan_fields(manifest, 0)
    for variant in range(1, manifest.variants):
        if _plan_fields(manifest, variant) != first:
            yield f"{MANIFEST}: variant {variant} has other shards than variant 0"
    parent, root = manifest.parent or "", manifest.root or ""
    if bool(manifest.generation) != bool(re.fullmatch("[0-9a-f]{64}", parent)):
        yield f"{MANIFEST}: generation {manifest.generation} of parent {manifest.parent}"
    if root and not re.fullmatch("[0-9a-f]{64}", root):
        yield f"{MANIFEST}: root {manifest.root}"


def _plan_fields(manifest: Manifest, variant: int) -> list[tuple[object, ...]]:
    """What does not differ between the variants of a shard."""
    return [
        (shard.name, shard.planned, shard.ok, shard.quarantined, shard.forgotten, shard.supplement)
        for shard in manifest.shards
        if shard.variant == variant
    ]


def _foreign_files(root: Location, manifest: Manifest) -> Iterator[str]:
    known = {MANIFEST, QUARANTINE, *map(protocol_name, manifest.protocols)}
    for shard in manifest.shards:
        known |= {tar_name(shard.variant, shard.name), index_name(shard.variant, shard.name)}
        known.add(shard.tar)
    for name in root.list_files():
        others = manifest.foreign and not name.startswith(OURS)
        if name not in known and not others:
            yield f"{name}: does not belong to this shard set"


def _check_plan(manifest: Manifest, read: list[_ReadIndex]) -> Iterator[str]:
    """The plan that the indexes carry against what the manifest says of it."""
    planned = [one for one in read if not one.shard.supplement]
    said: dict[str, object] = {"dataset": manifest.dataset, "split": manifest.split}
    if not manifest.foreign:  # those grow with the tars found
        said |= {"samples": sum(one.shard.planned for one in planned), "shards": len(planned)}
    settings = {name: value for name, value in manifest.settings.items() if name != "plan_version"}
    said |= {"settings": settings, "version": manifest.settings.get("plan_version")}
    for one in planned:
        for name, value in said.items():
            if one.plan.get(name) != value:
                yield f"{MANIFEST}: {name} is not that of the plan in {index_name(0, one.shard.name)}"
                return


def _check_sums(shard_set: ShardSet, read: list[_ReadIndex]) -> Iterator[str]:
    manifest = shard_set.manifest
    account = add_up(one.part for one in read)
    for name, value in account.claims().items():
        if getattr(manifest, name) != value:
            yield f"{MANIFEST}: {name} is not what the indexes add up to"
    left_out = account.quarantined + account.forgotten + sum(manifest.excluded.values())
    if account.samples + left_out != manifest.source_samples:
        yield (
            f"{MANIFEST}: {manifest.source_samples} samples in the source, {account.samples} in shards and "
            f"{left_out} left out"
        )
    location = shard_set.location.child(QUARANTINE)
    data, problem = _read_hashed(location, manifest.quarantine_sha256)
    if data is None:
        yield f"{QUARANTINE}: {problem}"
    elif not read_parquet(data).equals(account.quarantine):
        yield f"{QUARANTINE}: not the quarantined rows of the indexes"


def _read_hashed(location: Location, expected_sha256: str) -> tuple[bytes | None, str]:
    """The file, or what is wrong with it."""
    data = location.read_if_there()
    if data is None:
        return None, "missing"
    if sha256(data) != expected_sha256:
        return None, f"sha256 is not the one in {MANIFEST}"
    return data, ""


def _check_keys(read: list[_ReadIndex]) -> Iterator[str]:
    """Every sample is planned once, and only what was quarantined there has a second try."""
    planned = _chunked(one.keys for one in read if not one.shard.supplement)
    for key, count in _repeated(planned):
        yield f"{key}: planned {count} times"
    recovered = _chunked(one.part.recovered for one in read)
    for key, count in _repeated(recovered):
        yield f"{key}: in {count} supplements"
    quarantined = _chunked(
        one.part.quarantined["key"].combine_chunks() for one in read if not one.shard.supplement
    )
    tried = _chunked(one.keys for one in read if one.shard.supplement)
    unknown = tried.filter(pc.invert(pc.is_in(tried, quarantined)))
    for key in unknown.slice(0, SHOWN).to_pylist():
        yield f"{key}: in a supplement, but not quarantined in a planned shard"


def _repeated(keys: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    if pc.count_distinct(keys).as_py() < len(keys):
        counts = pc.value_counts(keys)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        yield from ((row["values"], row["counts"]) for row in repeated.slice(0, SHOWN).to_pylist())


def _chunked(arrays: Iterable[pa.Array]) -> pa.ChunkedArray:
    return pa.chunked_array(arrays, pa.string())


def _check_protocols(shard_set: ShardSet, read: list[_ReadIndex]) -> Iterator[str]:
    keys = _chunked(one.keys for one in read) if shard_set.manifest.protocols else None
    for name, expected in shard_set.manifest.protocols.items():
        data, problem = _read_hashed(shard_set.location.child(protocol_name(name)), expected)
        problems = [problem] if data is None else _check_protocol(data, keys)
        yield from (f"{protocol_name(name)}: {one}" for one in problems)


def _check_protocol(data: bytes, keys: pa.ChunkedArray) -> Iterator[str]:
    table = read_parquet(data)
    if table.schema.remove_metadata() != PROTOCOL_SCHEMA:
        yield "other columns than a protocol has"
        return
    for query, count in _repeated(table["query"]):
        yield f"query {query!r} {count} times"
    for column, used in protocol_keys(table).items():
        unknown = pc.unique(used.filter(pc.invert(pc.is_in(used, keys))))
        for key in unknown.slice(0, SHOWN).to_pylist():
            yield f"{column} {key!r} is no sample of this set"


def protocol_keys(table: pa.Table) -> Mapping[str, pa.ChunkedArray]:
    """Keys that a protocol names, those of galleries once each, by column."""
    galleries = [pc.list_flatten(chunk) for chunk in table["gallery"].chunks]
    positives = [pc.list_flatten(chunk).field("key") for chunk in table["positives"].chunks]
    return {
        "key": table["key"],
        "gallery": _chunked(gallery.unique().dictionary_decode() for gallery in galleries),
        "positives": _chunked(positives),
    }
