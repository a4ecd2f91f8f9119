"""Samples out of a shard set: indexes and tars are opened when a sample of theirs is wanted."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotation import Annotation
from pipeline.cache import Cache
from pipeline.errors import UserError
from pipeline.shards import OK, QUARANTINED, ShardSet, index_name
from pipeline.tars import Tars

OPEN_SHARDS = 64
"""Enough for reading here and there."""
SPAN_SLACK = 4096
"""Bytes that may lie between a sample's two members for them to be read at once."""


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


class SampleReader:
    """Random access to the slots of a shard set: a place is (variant, shard, slot).

    `open_shards` are kept open: as many as reading jumps between, or each sample opens one anew.
    """

    def __init__(self, shard_set: ShardSet, open_shards: int = OPEN_SHARDS) -> None:
        self.shard_set = shard_set
        self.manifest = shard_set.manifest
        self.name = f"{self.manifest.dataset}/{self.manifest.split}"
        self._shards = [shard_set.shards(variant) for variant in range(self.manifest.variants)]
        self.slots = tuple(shard.slots for shard in self._shards[0])
        # Twice: runs come from the first variant, whichever is read.
        self._indexes: Cache[tuple[int, int], ShardIndex] = Cache(2 * open_shards)
        self._tars = Tars(shard_set, open_shards)
        for shards in self._shards:
            if [shard.name for shard in shards] != [shard.name for shard in self._shards[0]]:
                raise UserError(
                    f"{shard_set.url}: its variants do not have the same shards. "
                    "Run the sharding job again, it makes what is missing."
                )

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
        key, image_type = index.keys[slot].as_py(), index.image_types[slot].as_py()
        image, annotation = self._read_members(variant, shard, index.members[slot])
        try:
            record = Annotation.from_json(annotation)
        except ValueError as error:
            raise BadSample(f"invalid annotation: {str(error).splitlines()[0]}") from None
        if record.key != key:
            raise BadSample(f"the tar holds {record.key!r} where the index says {key!r}")
        return Sample(record, image, image_type)

    def _read_members(
        self, variant: int, shard: int, members: NDArray[np.int64]
    ) -> tuple[bytes, bytes]:
        image_start, image_size, json_start, json_size = map(int, members)
        tar = self._tars.get(self._shards[variant][shard])
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
            raise BadSample("the tar ends inside this sample")
        return image, annotation

    def _load_index(self, variant: int, shard: int) -> ShardIndex:
        table = self._read_index(variant, shard)
        # Slots are what the first variant kept: the others hold the same samples in the same rows.
        first = table if variant == 0 else self._read_index(0, shard)
        kept = pc.not_equal(first["status"], QUARANTINED)
        if len(kept) != len(table) or pc.sum(kept).as_py() != self.slots[shard]:
            raise UserError(
                f"{self.shard_set.url}: the index of shard {self._shards[variant][shard].name} does not "
                "have as many samples as the manifest says. Run the sharding job again."
            )
        rows = table.filter(kept).combine_chunks()
        members = ("image_offset", "image_size", "json_offset", "json_size")
        return ShardIndex(
            keys=_column(rows, "key"),
            ok=_numbers(pc.equal(rows["status"], OK)).astype(bool),
            runs=_numbers(rows["run"].fill_null(-1)).astype(np.int32),
            image_types=_column(rows, "image_type"),
            members=np.stack([_numbers(rows[name].fill_null(0)) for name in members], 1),
        )

    def _read_index(self, variant: int, shard: int) -> pa.Table:
        record = self._shards[variant][shard]
        try:
            return self.shard_set.index(record)
        except FileNotFoundError:
            name = index_name(variant, record.name)
            raise UserError(
                f"{self.shard_set.url}/{name} is missing, though the manifest names it. Bring it back, or "
                "run the sharding job again."
            ) from None


def _column(table: pa.Table, name: str) -> pa.StringArray:
    chunks = table[name].chunks
    return chunks[0] if chunks else pa.array([], pa.string())


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.to_numpy()
    return numbers
