"""Where every sample that the source named went: one rule for the writer, `forget` and `verify`.

A sample is planned in one shard. Quarantined there, it may be `ok` in one supplement: then it counts as
`ok`. What was forgotten has no key any more: with a place in the stream its status says so, without
one (it was quarantined) it is a quarantined row without key.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shards import FORGOTTEN, INDEX_SCHEMA, OK, QUARANTINED, Shard

NO_STRINGS = pa.array([], pa.string())


@dataclass(frozen=True)
class Account:
    """What a manifest claims, added up from indexes."""

    samples: int
    quarantined: int
    forgotten: int
    persons: int
    ignored: int
    identities: tuple[str, ...]
    quarantine: pa.Table
    """Rows of INDEX_SCHEMA: the quarantined samples that no supplement holds."""

    def claims(self) -> dict[str, int | tuple[str, ...]]:
        """Under the names of the manifest's fields."""
        names = ("samples", "quarantined", "forgotten", "persons", "ignored", "identities")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ShardAccount:
    """One shard's part: small, whatever the shard holds."""

    supplement: bool
    samples: int
    forgotten: int
    persons: int
    ignored: int
    identities: pa.Array
    quarantined: pa.Table
    """Rows with a key."""
    recovered: pa.Array
    """Keys of a supplement's samples."""


def account_shard(shard: Shard, index: pa.Table) -> ShardAccount:
    """Of an index of the first variant; it needs all of INDEX_SCHEMA's columns."""
    usable = index.filter(pc.equal(index["status"], OK))
    quarantined = index.filter(pc.equal(index["status"], QUARANTINED))
    keyless = quarantined["key"].null_count
    forgotten = int(pc.sum(pc.equal(index["status"], FORGOTTEN)).as_py() or 0)
    return ShardAccount(
        supplement=shard.supplement,
        samples=len(usable),
        # A forgotten sample of a supplement lies, without its key, among the quarantined of a plan's shard.
        forgotten=0 if shard.supplement else forgotten + keyless,
        persons=int(pc.sum(usable["persons"]).as_py() or 0),
        ignored=int(pc.sum(usable["ignored"]).as_py() or 0),
        identities=pc.unique(pc.list_flatten(usable["identities"])),
        quarantined=quarantined.filter(pc.is_valid(quarantined["key"])),
        recovered=usable["key"].combine_chunks() if shard.supplement else NO_STRINGS,
    )


def add_up(parts: Iterable[ShardAccount]) -> Account:
    """`parts` in the manifest's order, of all shards of the first variant."""
    parts = list(parts)
    planned = [part.quarantined for part in parts if not part.supplement]
    quarantined = pa.concat_tables([INDEX_SCHEMA.empty_table(), *planned])
    recovered = pa.concat_arrays([NO_STRINGS, *(part.recovered for part in parts)])
    left = quarantined.filter(pc.invert(pc.is_in(quarantined["key"], recovered)))
    identities = pa.concat_arrays([NO_STRINGS, *(part.identities for part in parts)])
    return Account(
        samples=sum(part.samples for part in parts),
        quarantined=len(left),
        forgotten=sum(part.forgotten for part in parts),
        persons=sum(part.persons for part in parts),
        ignored=sum(part.ignored for part in parts),
        identities=tuple(sorted(pc.unique(identities).to_pylist())),
        quarantine=left,
    )
