"""Selects samples of a shard set by what its indexes and annotations say: `python -m pipeline select`."""

import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import UserError
from pipeline.filters import PeopleFilter, read_names
from pipeline.samples import BadSample, SampleReader
from pipeline.selection import Selection
from pipeline.shards import OK, QUARANTINED, ShardSet, sha256

THREADS = 16
"""Indexes and annotations come one by one, from a store perhaps: reading is mostly waiting."""


class SelectConfig(PeopleFilter):
    """Everything that is asked for must hold. Samples are chosen as they are stored."""

    max_persons: int | None = Field(default=None, ge=0)
    """Keep samples with at most so many persons, ignored ones not counted."""
    min_size: tuple[int, int] = (0, 0)
    """[height, width] of the smallest image kept."""
    min_images: int = Field(default=1, ge=1)
    """Keep samples that show an identity which at least so many samples show."""
    labelled: bool = False
    """Keep samples that show somebody with an identity."""
    keys: str | None = None
    """File of sample keys, one a line: keep these only."""
    exclude_keys: str | None = None
    """File of sample keys, one a line: leave these out."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Of those that all else leaves, the share with the smallest sha256(salt + key), rounded up: a larger
    one only adds to them."""
    salt: str = ""

    @property
    def needs_annotations(self) -> bool:
        """Whether indexes do not know enough: they count people and say nothing of their boxes."""
        return self.min_person_height > 0 or self.min_visible > 0


def select(shard_set: ShardSet, config: SelectConfig) -> Selection:
    """Reads every index, and the annotations where boxes matter. Raises UserError if nothing is left."""
    numbers = range(len(shard_set.shards(0)))
    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(partial(_kept_rows, shard_set), numbers))
        chosen = list(_by_index(tables, config))
        if config.needs_annotations:
            reader = SampleReader(shard_set)
            chosen = list(pool.map(partial(_by_people, reader, config), numbers, chosen))
    if config.fraction < 1:
        chosen = _share(tables, chosen, config)
    if not any(shard.any() for shard in chosen):
        raise UserError(f"no sample of {shard_set.url} is what was asked for: nothing to select.")
    asked = config.model_dump(mode="json", exclude_defaults=True)
    return Selection.of(shard_set, asked, chosen)


def _kept_rows(shard_set: ShardSet, number: int) -> pa.Table:
    """The index's rows of a shard, one for each slot."""
    table = shard_set.index(shard_set.shards(0)[number])
    rows = table.filter(pc.not_equal(table["status"], QUARANTINED))
    return rows.select(["key", "status", "persons", "height", "width", "identities"])


def _by_index(tables: list[pa.Table], config: SelectConfig) -> Iterator[NDArray[np.bool_]]:
    """What can be told from the indexes, shard by shard."""
    wanted = _named_keys(config.keys, tables) if config.keys else None
    unwanted = _named_keys(config.exclude_keys, tables) if config.exclude_keys else None
    images = Counter(
        identity
        for table in tables
        for shown in table["identities"].to_pylist()
        for identity in set(shown or ())
    )
    for table in tables:
        persons, height, width = (
            table[name].fill_null(0).to_numpy() for name in ("persons", "height", "width")
        )
        chosen = pc.equal(table["status"], OK).to_numpy()
        chosen &= (height >= config.min_size[0]) & (width >= config.min_size[1])
        chosen &= persons >= config.persons_needed
        if config.max_persons is not None:
            chosen &= persons <= config.max_persons
        if config.labelled or config.min_images > 1:
            shown = table["identities"].to_pylist()
            often = [any(images[one] >= config.min_images for one in some or ()) for some in shown]
            chosen &= np.array(often, bool)
        if wanted is not None:
            chosen &= pc.is_in(table["key"], wanted).to_numpy()
        if unwanted is not None:
            chosen &= ~pc.is_in(table["key"], unwanted).to_numpy()
        yield chosen


def _share(
    tables: list[pa.Table], chosen: list[NDArray[np.bool_]], config: SelectConfig
) -> list[NDArray[np.bool_]]:
    """The `fraction` of the chosen samples with the smallest hashes, wherever they are stored."""
    hashes = [
        {slot: sha256((config.salt + table["key"][slot].as_py()).encode()) for slot in slots}
        for table, shard in zip(tables, chosen)
        for slots in [np.flatnonzero(shard).tolist()]
    ]
    ordered = sorted(value for shard in hashes for value in shard.values())
    taken = set(ordered[: math.ceil(config.fraction * len(ordered))])
    kept = [np.zeros_like(shard) for shard in chosen]
    for shard, own in zip(kept, hashes):
        shard[[slot for slot, value in own.items() if value in taken]] = True
    return kept


def _named_keys(path: str, tables: list[pa.Table]) -> pa.Array:
    """Raises UserError on a key that no sample has: a typo would be silent."""
    named = read_names(path)
    unknown = dict(named)
    for table in tables:
        for key in table["key"].to_pylist():
            unknown.pop(key, None)
    if unknown:
        key, place = next(iter(unknown.items()))
        more = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise UserError(f"no sample has the key {key} ({place}){more}.")
    return pa.array(named, pa.string())


def _by_people(
    reader: SampleReader, config: SelectConfig, shard: int, chosen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Those whose annotation shows the people asked for; one that cannot be read stays out."""
    chosen = chosen.copy()
    for slot in np.flatnonzero(chosen).tolist():
        try:
            chosen[slot] = config.finds_people(reader.annotation(0, shard, slot).persons)
        except BadSample:
            chosen[slot] = False
    return chosen
