"""Takes people out of a finished shard set: a new generation without the samples that show them.

before   new shards beside the old ones; new quarantine and protocols beside the old ones, as NAME.g1
moment   manifest.json is replaced: until now the old generation is whole, from now on the new one counts
after    what lies beside takes its place, the old shards are removed

Killed anywhere, another run begins with what is left to do of the last part. Pixels of others are
copied coded as they are. Places in the stream stay: a forgotten sample leaves an empty one.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.accounting import ShardAccount, account_shard, add_up
from pipeline.errors import UserError
from pipeline.shards import (
    MANIFEST,
    QUARANTINE,
    Manifest,
    Shard,
    ShardSet,
    index_name,
    parquet_bytes,
    protocol_name,
    sha256,
)
from pipeline.stores.store import Location
from pipeline.written import WrittenIndex, read_indexes
from sharding.existing import unlisted
from sharding.upkeep.rewrite import checked, protocol_without, rewrite

WRITERS = 4
"""Shards that are rewritten at a time; of a store's, each lies on the disk meanwhile."""

BESIDE = re.compile(r"(?:quarantine|protocols/[^/]+)\.parquet\.g\d+")


@dataclass(frozen=True)
class Forgetting:
    """What a run did. Nobody who was forgotten is named."""

    manifest: Manifest
    samples: int
    shards: int
    """Of one variant."""
    removed_files: int
    asked: int
    """Names."""
    unknown: frozenset[str]
    """Names asked for that the set does not hold, or no longer."""
    unseen: int = 0
    """Quarantined samples that may show somebody asked for."""

    def lines(self, listed: Mapping[str, str]) -> list[str]:
        """For the terminal. `listed`: where each name was read, from `read_names`."""
        name = f"{self.manifest.dataset} {self.manifest.split}"
        lines = []
        if self.unknown:
            places = ", ".join(sorted(listed[one] for one in self.unknown if one in listed))
            lines.append(
                f"!! {name}: {len(self.unknown):,} of {self.asked:,} names are not in it"
                f"{': ' if places else ''}{places}"
            )
        if self.samples:
            lines.append(
                f"{name}: {self.samples:,} samples in {self.shards:,} shards forgotten. This is generation "
                f"{self.manifest.generation}, with {self.manifest.samples:,} samples. Not reached from here: "
                "other copies, caches, the native release, and what was trained on them."
            )
        if self.unseen:
            lines.append(f"{name}: {_say_unseen(self.unseen)}")
        if self.removed_files:
            lines.append(f"{name}: {self.removed_files:,} files of other generations removed.")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines({}))


@dataclass(frozen=True)
class _Found:
    """What the indexes hold of the names asked for."""

    keys: frozenset[str]
    """Of all samples to forget."""
    names: frozenset[str]
    """Names asked for that are there."""
    shards: frozenset[str]
    unseen: int
    """Other samples that may show an identity asked for: missing ones do not say whom they show."""


def forget(url: str, identities: Collection[str], keys: Collection[str]) -> Forgetting:
    """Forgets every sample that shows one of `identities` or has one of `keys`, in every variant.

    Of a sample that is missing from the source nobody knows whom it shows. While there are such, the
    identities are withheld from retries. Raises UserError if none of the names is in the set (they are
    withheld all the same), or something in the set is damaged.
    """
    with Location(url).exclusive():
        return _forget(ShardSet(url), identities, keys)


def _forget(shard_set: ShardSet, identities: Collection[str], keys: Collection[str]) -> Forgetting:
    if shard_set.manifest.foreign:
        raise UserError(
            f"the tars of {shard_set.url} are another tool's and are left as they are. Take the samples out "
            "of them there, and run `python -m pipeline index` again."
        )
    shard_set.location.sweep()
    removed = _settle(shard_set)
    found = _search(shard_set, identities, keys)
    names = frozenset((*identities, *keys))
    unknown = names - found.names
    withheld = _withheld(shard_set.manifest, found, identities)
    if not found.keys:
        nothing_found = _nothing_found(shard_set, len(names))
        if withheld != shard_set.manifest.withheld:
            _withhold(shard_set, withheld)
            raise UserError(f"{nothing_found} But {_say_unseen(found.unseen)}")
        if not removed:
            raise UserError(nothing_found)
        return Forgetting(shard_set.manifest, 0, 0, removed, len(names), unknown)
    child = _write_beside(shard_set, found, identities, withheld)
    _replace_manifest(shard_set, child)
    removed += _settle(ShardSet(shard_set.url))
    samples = child.forgotten - shard_set.manifest.forgotten
    return Forgetting(child, samples, len(found.shards), removed, len(names), unknown, found.unseen)


def _replace_manifest(shard_set: ShardSet, child: Manifest) -> None:
    """Raises UserError if another process was here meanwhile, which a store cannot prevent."""
    root = shard_set.location
    files = {file for shard in child.shards for file in shard.files}
    same = ShardSet(shard_set.url).manifest_sha256 == shard_set.manifest_sha256
    if not same or not files <= set(root.list_files()):
        raise UserError(
            f"{root.url} was changed by another process meanwhile, and nothing was forgotten. See that none "
            "is writing there, and run this again."
        )
    root.child(MANIFEST).write(child.to_json())


def _withheld(manifest: Manifest, found: _Found, identities: Collection[str]) -> tuple[str, ...]:
    """What is withheld from now on."""
    new = map(manifest.pseudonym, identities) if found.unseen else ()
    return tuple(sorted({*manifest.withheld, *new}))


def _withhold(shard_set: ShardSet, withheld: tuple[str, ...]) -> None:
    """In the manifest alone: samples and generation stay."""
    update = {"withheld": withheld, "root": shard_set.root_sha256}
    _replace_manifest(shard_set, shard_set.manifest.model_copy(update=update))


def _say_unseen(unseen: int) -> str:
    return (
        f"{unseen:,} quarantined samples do not say whom they show. {MANIFEST} keeps a salted hash of each "
        "identity asked for, so that no retry takes in a sample of theirs."
    )


def _nothing_found(shard_set: ShardSet, asked: int) -> str:
    generation = shard_set.manifest.generation
    before = f", or were forgotten before (it is generation {generation})" if generation else ""
    return (
        f"none of the {asked:,} names is in {shard_set.url}: they belong to another set{before}. Identities "
        f"are written as in {MANIFEST}, `train:0012` say, and keys as the samples' names in the tars."
    )


def _settle(shard_set: ShardSet) -> int:
    """Does what comes after the replacement of the manifest; returns how many files were removed."""
    root, manifest = shard_set.location, shard_set.manifest
    files = root.list_files()
    for name, expected in _hashes(manifest).items():
        if (staged := _beside(name, manifest.generation)) in files:
            data = root.child(staged).read()
            if sha256(data) == expected:
                root.child(name).write(data)
    beside = [name for name in files if BESIDE.fullmatch(name)]
    superfluous = [*beside, *unlisted(root, manifest)]
    for name in superfluous:
        root.child(name).remove()
    return len(superfluous)


def _hashes(manifest: Manifest) -> dict[str, str]:
    """sha256 of the files that keep their names from generation to generation."""
    protocols = {protocol_name(name): digest for name, digest in manifest.protocols.items()}
    return {QUARANTINE: manifest.quarantine_sha256, **protocols}


def _beside(name: str, generation: int) -> str:
    return f"{name}.g{generation}"


def _search(shard_set: ShardSet, identities: Collection[str], keys: Collection[str]) -> _Found:
    # Supplements first: what shows somebody there has its key alone in the shard it was planned in.
    shards = sorted(shard_set.shards(), key=lambda shard: not shard.supplement)
    wanted = pa.array(sorted(identities), pa.string())
    doomed, names, places = set(keys), set[str](), set[str]()
    known: set[str] = set()
    parts = []
    for shard, written in _read(shard_set.location, shards):
        parts.append(account_shard(shard, written.table))
        rows, shown = _rows_with(written.table, wanted, pa.array(sorted(doomed), pa.string()))
        found = written.table["key"].filter(pa.array(rows)).to_pylist()
        names.update(shown)
        known.update(found)
        doomed.update(found)
        if found:
            places.add(shard.name)
    asked = frozenset(names | (known & set(keys)))
    may_show = identities and shard_set.manifest.task != "detection"
    unseen = _unseen(parts, known) if may_show else 0
    return _Found(frozenset(known), asked, frozenset(places), unseen)


def _unseen(parts: list[ShardAccount], doomed: Collection[str]) -> int:
    """How many quarantined samples, but for `doomed`, name nobody."""
    rows = add_up(parts).quarantine.to_pylist()
    return sum(not row["identities"] and row["key"] not in doomed for row in rows)


def _read(root: Location, shards: list[Shard]) -> Iterator[tuple[Shard, WrittenIndex]]:
    """Indexes in their order. Raises UserError on one that the manifest does not name."""
    names = [index_name(shard.variant, shard.name) for shard in shards]
    for shard, (name, written) in zip(shards, read_indexes(root, names), strict=True):
        yield shard, checked(root, name, shard, written)


def _rows_with(
    index: pa.Table, identities: pa.Array, keys: pa.Array
) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], list[str]]:
    """Which rows have one of `keys` or show one of `identities`, and whom of these."""
    rows = pc.is_in(index["key"], keys).to_numpy().astype(bool)
    column = index["identities"].combine_chunks()
    people = column.flatten()
    shows = pc.is_in(people, identities)
    rows[pc.list_parent_indices(column).filter(shows).to_numpy()] = True
    return rows, people.filter(shows).unique().to_pylist()


def _write_beside(
    shard_set: ShardSet, found: _Found, identities: Collection[str], withheld: tuple[str, ...]
) -> Manifest:
    """Writes all files of the new generation but its manifest, which is returned."""
    root, old = shard_set.location, shard_set.manifest
    generation = old.generation + 1
    affected = [shard for shard in old.shards if shard.name in found.shards]
    write_one = partial(rewrite, root, keys=found.keys, generation=generation)
    with ThreadPoolExecutor(WRITERS) as pool:
        replaced = dict(zip(affected, pool.map(write_one, affected), strict=True))
    shards = tuple(replaced.get(shard, shard) for shard in old.shards)
    first = [shard for shard in shards if shard.variant == 0]
    parts, known = [], []
    for shard, written in _read(root, first):
        parts.append(account_shard(shard, written.table))
        if old.protocols:
            known += written.table["key"].chunks
    account, keys = add_up(parts), pa.chunked_array(known, pa.string()).combine_chunks()
    new = {QUARANTINE: parquet_bytes(account.quarantine)}
    for name, expected in old.protocols.items():
        new[protocol_name(name)] = protocol_without(root, name, expected, identities, keys)
    for name, digest in _hashes(old).items():
        if sha256(new[name]) != digest:
            root.child(_beside(name, generation)).write(new[name])
    update = {
        "shards": shards,
        "withheld": withheld,
        "generation": generation,
        "parent": shard_set.manifest_sha256,
        "root": shard_set.root_sha256,
        "quarantine_sha256": sha256(new[QUARANTINE]),
        "protocols": {name: sha256(new[protocol_name(name)]) for name in old.protocols},
        **account.claims(),
    }
    return old.model_copy(update=update)
