"""Samples out of a shard set: indexes and tars are opened when a sample of theirs is wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotation import Annotation
from pipeline.cache import Cache
from pipeline.errors import UserError
from pipeline.selection import Selection
from pipeline.shards import OK, QUARANTINED, ShardSet, index_name
from pipeline.stores.genuine import Member, advice_on_copy, check_members
from pipeline.stores.node_cache import NodeCache
from pipeline.stores.tars import Tar, Tars

OPEN_SHARDS = 64
"""Enough for reading here and there."""
SPAN_SLACK = 4096
"""Bytes that may lie between a sample's two members for them to be read at once."""
MEMBERS_LOOKED_AT = 8
"""Of a shard with a damaged annotation, to tell whether the whole tar is another."""


class BadSample(Exception):
    """A sample that cannot be used; the message says why."""


class Sample(NamedTuple):
    """As it is stored."""

    annotation: Annotation
    image: bytes
    """Coded."""
    image_type: str


@dataclass(frozen=True)
class ShardIndex:
    """What of a shard's index the stream needs; one row for every slot."""

    keys: pa.StringArray
    """Null where forgotten."""
    ok: NDArray[np.bool_]
    runs: NDArray[np.int32]
    image_types: pa.StringArray
    members: NDArray[np.int64]
    """(slots, 4): offset and size of the image, offset and size of the JSON."""
    sizes: NDArray[np.int64]
    """(slots, 2): height and width of the image."""


class SampleReader:
    """Random access to the slots of a shard set: a place is (variant, shard, slot).

    `open_shards` are kept open: as many as reading jumps between, or each sample opens one anew. With a
    `selection`, slots are those of its samples alone.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        open_shards: int = OPEN_SHARDS,
        selection: Selection | None = None,
        cache: NodeCache | None = None,
        check_hashes: bool = False,
    ) -> None:
        self.shard_set = shard_set
        self.manifest = shard_set.manifest
        self.name = f"{self.manifest.dataset}/{self.manifest.split}"
        self._shards = [shard_set.shards(variant) for variant in range(self.manifest.variants)]
        self._selection = selection
        self.slots = tuple(shard.slots for shard in self._shards[0])
        if selection is not None:
            selection.require_fits(shard_set)
            self.slots = selection.counts
        # Twice: runs come from the first variant, whichever is read.
        self._indexes: Cache[tuple[int, int], ShardIndex] = Cache(2 * open_shards)
        self.tars = Tars(shard_set, open_shards, cache, check_hashes)
        for shards in self._shards:
            if [shard.name for shard in shards] != [shard.name for shard in self._shards[0]]:
                raise UserError(
                    f"{shard_set.url}: its variants do not have the same shards. "
                    "Run the sharding job again, it makes what is missing."
                )

    @property
    def source_name(self) -> str:
        """Tells apart two selections of one set."""
        return f"{self.name}#{self._selection.sha256[:16]}" if self._selection else self.name

    @property
    def definition(self) -> dict[str, str]:
        """What decides its samples."""
        set_of_samples = {"name": self.name, "manifest": self.shard_set.root_sha256}
        if self._selection:
            set_of_samples["selection"] = self._selection.sha256
        return set_of_samples

    def index(self, variant: int, shard: int) -> ShardIndex:
        return self._indexes.get((variant, shard), lambda: self._load_index(variant, shard))

    def runs(self, shard: int) -> NDArray[np.int32]:
        return self.index(0, shard).runs

    def key(self, shard: int, slot: int) -> str | None:
        """None: forgotten."""
        key: str | None = self.index(0, shard).keys[slot].as_py()
        return key

    def origin(self, variant: int, shard: int, slot: int) -> tuple[str, int]:
        """The tar and the byte offset of the image, to be named in reports."""
        offset = int(self.index(variant, shard).members[slot, 0])
        return self.shard_set.tar(self._shards[variant][shard]).url, offset

    def read(self, variant: int, shard: int, slot: int) -> Sample:
        """Raises BadSample."""
        index = self.index(variant, shard)
        if not index.ok[slot]:
            raise BadSample("forgotten or quarantined")
        image, annotation = self._read_members(variant, shard, index.members[slot])
        record = self._record_or_foreign(annotation, variant, shard, slot)
        return Sample(record, image, index.image_types[slot].as_py())

    def annotation(self, variant: int, shard: int, slot: int) -> Annotation:
        """Without the image's bytes. Raises BadSample."""
        index = self.index(variant, shard)
        start, size = map(int, index.members[slot, 2:])
        data = self._tar(variant, shard).read(start, start + size)
        return self._record_or_foreign(data, variant, shard, slot)

    def fetch(self, variant: int, shard: int, can_wait: Callable[[], bool]) -> None:
        """Opens what reading from the shard opens; see `Tars.fetch`."""
        self.index(variant, shard)
        self.tars.fetch(self._shards[variant][shard], can_wait)

    def _tar(self, variant: int, shard: int) -> Tar:
        return self.tars.get(self._shards[variant][shard])

    def _record_or_foreign(self, data: bytes, variant: int, shard: int, slot: int) -> Annotation:
        """Raises BadSample; UserError if the whole tar is another than the index says."""
        index = self.index(variant, shard)
        try:
            return self._record(data, index, slot)
        except BadSample:
            tar, record = self._tar(variant, shard), self._shards[variant][shard]
            parquet = self.shard_set.location.child(index_name(variant, record.name))
            original = self.shard_set.tar(record)
            check_members(tar.location, tar.read, self._some_members(index), parquet, original)
            raise

    def _some_members(self, index: ShardIndex) -> list[Member]:
        """JSON members, evenly spread."""
        slots = np.flatnonzero(index.ok)
        named = self.manifest.fields is None  # other tools' tars have names of their own
        return [
            Member(
                f"{index.keys[slot].as_py()}.json" if named else None,
                *map(int, index.members[slot, 2:]),
            )
            for slot in slots[:: -(-len(slots) // MEMBERS_LOOKED_AT)]
        ]

    def _record(self, data: bytes, index: ShardIndex, slot: int) -> Annotation:
        key = index.keys[slot].as_py()
        height, width = map(int, index.sizes[slot])
        try:
            record = self.manifest.annotation(data, key, (height, width))
        except ValueError as error:
            raise BadSample(f"invalid annotation: {str(error).splitlines()[0]}") from None
        if record.key != key:
            raise BadSample(f"the tar holds {record.key!r} where the index says {key!r}")
        return record

    def _read_members(
        self, variant: int, shard: int, members: NDArray[np.int64]
    ) -> tuple[bytes, bytes]:
        image_start, image_size, json_start, json_size = map(int, members)
        tar = self._tar(variant, shard)
        start = min(image_start, json_start)
        end = max(image_start + image_size, json_start + json_size)
        if end - start <= image_size + json_size + SPAN_SLACK:
            span = tar.read(start, end)
            image = span[image_start - start :][:image_size]
            annotation = span[json_start - start :][:json_size]
        else:
            image = tar.read(image_start, image_start + image_size)
            annotation = tar.read(json_start, json_start + json_size)
        if len(image) != image_size or len(annotation) != json_size:
            original = self.shard_set.tar(self._shards[variant][shard])
            what = (
                "Bring it back as it was written, or run the sharding job again."
                if tar.location == original
                else advice_on_copy(original)
            )
            raise UserError(
                f"{tar.location.url} ends before byte {end}, which its index names: it was cut since it was "
                f"opened. {what}"
            )
        return image, annotation

    def _load_index(self, variant: int, shard: int) -> ShardIndex:
        table = self._read_index(variant, shard)
        # Slots are what the first variant kept: the others hold the same samples in the same rows.
        first = table if variant == 0 else self._read_index(0, shard)
        kept = pc.not_equal(first["status"], QUARANTINED)
        if len(kept) != len(table) or pc.sum(kept).as_py() != self._shards[0][shard].slots:
            raise UserError(
                f"{self.shard_set.url}: the index of shard {self._shards[variant][shard].name} does not "
                "have as many samples as the manifest says. Run the sharding job again."
            )
        rows = table.filter(kept)
        if self._selection is not None:
            rows = rows.filter(pa.array(self._selection.chosen(shard)))
        rows = rows.combine_chunks()
        members = ("image_offset", "image_size", "json_offset", "json_size")
        return ShardIndex(
            keys=_column(rows, "key"),
            ok=_numbers(pc.equal(rows["status"], OK)).astype(bool),
            runs=_numbers(rows["run"].fill_null(-1)).astype(np.int32),
            image_types=_column(rows, "image_type"),
            members=np.stack([_numbers(rows[name].fill_null(0)) for name in members], 1),
            sizes=np.stack([_numbers(rows[name].fill_null(0)) for name in ("height", "width")], 1),
        )

    def _read_index(self, variant: int, shard: int) -> pa.Table:
        record = self._shards[variant][shard]
        with self.shard_set.location.child(index_name(variant, record.name)).needed():
            return self.shard_set.index(record)


def _column(table: pa.Table, name: str) -> pa.StringArray:
    chunks = table[name].chunks
    return chunks[0] if chunks else pa.array([], pa.string())


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.to_numpy()
    return numbers
