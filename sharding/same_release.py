"""Whether a source is of the release that a finished set was made of, by all that the set's indexes tell."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.accounting import account_shard, add_up
from pipeline.annotation import identities_of, summarise
from pipeline.errors import UserError
from pipeline.shards import MANIFEST, OK, Manifest, index_name
from pipeline.stores.store import Location
from pipeline.written import read_indexes
from sharding.datasets.base import SourceSample
from sharding.existing import first_shards
from sharding.ordering import digest
from sharding.plan import Plan

TOLD = ["key", "origin", "persons", "ignored", "identities"]
"""Columns of an index that a source must still tell alike. Nothing tells what a box or an image was."""
Fingerprints = NDArray[np.uint64]


@dataclass(frozen=True)
class WrittenSamples:
    """Samples of a set; of usable ones little, so that millions fit."""

    quarantined: dict[str, dict[str, Any]]
    """Rows by key."""
    keys: pa.Array
    """Of the usable ones, in the set's order."""
    told: Fingerprints
    """Of `TOLD`, of each of them."""

    def find_again(self, plan: Plan, source: str) -> dict[str, SourceSample]:
        """Of the quarantined samples those that the source, planned anew, now has, by key.

        Raises UserError if it tells otherwise of a sample than the set, or no longer names it.
        """
        found, told, unreadable = {}, bytearray(), []
        for planned in (planned for shard in plan.shards for planned in shard.samples):
            sample = planned.source
            if planned.fault is not None:
                unreadable.append(sample.key)
                continue
            told += _fingerprint(_tell(sample))
            if sample.key in self.quarantined:
                _require_alike(source, sample, self.quarantined[sample.key])
                found[sample.key] = sample
        self._require_told(source, np.frombuffer(told, np.uint64), unreadable)
        return found

    def _require_told(self, source: str, told: Fingerprints, unreadable: list[str]) -> None:
        gone = pc.is_in(self.keys, pa.array(unreadable, pa.string())).to_numpy(zero_copy_only=False)
        otherwise = ~np.isin(self.told, told) & ~gone
        if otherwise.any():
            number, one = int(otherwise.sum()), self.keys[int(otherwise.argmax())]
            raise _another_release(source, f"{number:,} samples, {one} for one,")


def read_written(out: Location, manifest: Manifest) -> WrittenSamples:
    """Reads the indexes alone: what a killed run left beside them decides nothing. Raises UserError."""
    shards = first_shards(manifest)
    names = [index_name(shard.variant, shard.name) for shard in shards]
    accounts, keys, told = [], [pa.array([], pa.string())], bytearray()
    for shard, (name, written) in zip(shards, read_indexes(out, names), strict=True):
        if written is None or written.sha256 != shard.index_sha256:
            raise UserError(
                f"{out.url}/{name} is not the index that {MANIFEST} names: `python -m sharding verify "
                f"{out.url}` tells what else is wrong."
            )
        accounts.append(account_shard(shard, written.table))
        usable = written.table.filter(pc.equal(written.table["status"], OK)).select(TOLD)
        keys += usable["key"].chunks
        for row in usable.to_pylist():
            told += _fingerprint(row.values())
    quarantined = {row["key"]: row for row in add_up(accounts).quarantine.to_pylist()}
    return WrittenSamples(quarantined, pa.concat_arrays(keys), np.frombuffer(told, np.uint64))


def _tell(sample: SourceSample) -> list[Any]:
    """What an index has of it in `TOLD`."""
    told = {"key": sample.key, "origin": sample.origin, **summarise(sample.persons)}
    return [told[column] for column in TOLD]


def _fingerprint(values: Iterable[object]) -> bytes:
    return digest(*values)[: np.dtype(np.uint64).itemsize]


def _require_alike(source: str, sample: SourceSample, row: dict[str, Any]) -> None:
    """What was missing said nothing of people; what was there must still say the same."""
    if sample.origin != row["origin"] or row["identities"] not in (
        None,
        [],
        identities_of(sample.persons),
    ):
        raise _another_release(source, sample.origin)


def _another_release(source: str, what: str) -> UserError:
    return UserError(
        f"{source} says otherwise of {what} than when the set was made: quarantined samples can be tried "
        "again with the same release only."
    )
