"""A selection: which samples of a shard set are drawn, decided once and kept in a file.

So the stream opens it in no time, and its hash says what a run was trained on. A row for each shard.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.shards import ShardSet, read_parquet, sha256
from pipeline.stores.store import Location

SCHEMA = pa.schema(
    [
        ("slots", pa.int32()),  # samples of the shard, forgotten ones included
        ("selected", pa.int32()),
        ("bits", pa.binary()),  # a bit for each slot, the first one highest
    ]
)
"""Shards in the manifest's order. Schema metadata adds `root` (sha256 of the manifest) and `filter`."""


@dataclass(frozen=True)
class Selection:
    root: str
    """`ShardSet.root_sha256`: the set that was selected from, and whatever `forget` made of it."""
    filter: dict[str, Any]
    """What was asked for."""
    slots: tuple[int, ...]
    """Samples of each shard."""
    counts: tuple[int, ...]
    """Selected ones."""
    bits: pa.BinaryArray
    sha256: str = ""
    """Of the file; empty before it is written."""

    @classmethod
    def of(
        cls, shard_set: ShardSet, asked: dict[str, Any], chosen: list[NDArray[np.bool_]]
    ) -> "Selection":
        """`chosen`: for each shard whether a slot is selected."""
        return cls(
            root=shard_set.root_sha256,
            filter=asked,
            slots=tuple(map(len, chosen)),
            counts=tuple(int(shard.sum()) for shard in chosen),
            bits=pa.array([np.packbits(shard).tobytes() for shard in chosen], pa.binary()),
        )

    @classmethod
    def read(cls, url: str) -> "Selection":
        """Raises UserError if there is no selection at `url`."""
        try:
            data = Location(url).read()
            table = read_parquet(data)
            told = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
            return cls(
                root=told["root"].decode(),
                filter=json.loads(told["filter"]),
                slots=tuple(table["slots"].to_pylist()),
                counts=tuple(table["selected"].to_pylist()),
                bits=table["bits"].combine_chunks(),
                sha256=sha256(data),
            )
        except FileNotFoundError:
            raise UserError(
                f"no selection at {url}: `python -m pipeline select` makes one."
            ) from None
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"{url} is not a selection ({error}): make it with `python -m pipeline select`."
            ) from None

    def write(self, url: str) -> str:
        """Returns the file's sha256."""
        told = {"root": self.root, "filter": json.dumps(self.filter, sort_keys=True)}
        columns = [pa.array(self.slots, pa.int32()), pa.array(self.counts, pa.int32()), self.bits]
        table = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(told))
        file = io.BytesIO()
        pq.write_table(table, file)
        Location(url).write(file.getvalue())
        return sha256(file.getvalue())

    def require_fits(self, shard_set: ShardSet) -> None:
        """Raises UserError if it was made of another shard set."""
        slots = tuple(shard.slots for shard in shard_set.shards(0))
        if self.root != shard_set.root_sha256 or self.slots != slots:
            raise UserError(
                f"the selection was made of another shard set than the one at {shard_set.url}, or of what it "
                "was before it changed: make it again with `python -m pipeline select`."
            )

    def chosen(self, shard: int) -> NDArray[np.bool_]:
        """Whether each slot of a shard is selected."""
        packed = np.frombuffer(self.bits[shard].as_py(), np.uint8)
        return np.unpackbits(packed, count=self.slots[shard]).astype(bool)
