"""Builds the table of a person-search protocol, whose galleries may name ten million images."""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotation import Box
from pipeline.shards import PROTOCOL_SCHEMA


class ProtocolTable:
    """Takes queries one by one; of a gallery it keeps four bytes an image."""

    def __init__(self, key: Callable[[str], str]) -> None:
        """`key` tells an image's key from its name."""
        self._key = key
        self._queries: dict[str, tuple[str, Box, str]] = {}
        self._numbers: dict[str, int] = {}
        self._galleries: list[NDArray[np.int32] | None] = []
        self._positives: list[list[dict[str, object]] | None] = []

    def __len__(self) -> int:
        return len(self._queries)

    @property
    def images(self) -> set[str]:
        """All that were named."""
        return {image for image, _, _ in self._queries.values()} | self._numbers.keys()

    def add(
        self,
        query: str,
        image: str,
        box: Box,
        identity: str,
        gallery: Iterable[str] | None = None,
        positives: Iterable[tuple[str, Box]] | None = None,
    ) -> None:
        """A second query of one name gets `_2` to its name, a third `_3`."""
        name, copies = query, 1
        while name in self._queries:
            copies += 1
            name = f"{query}_{copies}"
        self._queries[name] = (image, box, identity)
        self._galleries.append(None if gallery is None else self._number(gallery))
        if positives is None:
            self._positives.append(None)
        else:
            self._positives.append([{"key": self._key(i), "box": place} for i, place in positives])

    def table(self) -> pa.Table:
        images, boxes, identities = zip(*self._queries.values()) if self._queries else ((), (), ())
        columns = {
            "query": pa.array(list(self._queries), pa.string()),
            "key": pa.array([self._key(image) for image in images], pa.string()),
            "box": pa.array(list(boxes), PROTOCOL_SCHEMA.field("box").type),
            "identity": pa.array(list(identities), pa.string()),
            "gallery": self._gallery(),
            "positives": pa.array(self._positives, PROTOCOL_SCHEMA.field("positives").type),
        }
        return pa.table(columns, schema=PROTOCOL_SCHEMA)

    def _number(self, images: Iterable[str]) -> NDArray[np.int32]:
        numbers = self._numbers
        return np.array([numbers.setdefault(image, len(numbers)) for image in images], np.int32)

    def _gallery(self) -> pa.Array:
        lengths = [0 if gallery is None else len(gallery) for gallery in self._galleries]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        known = [gallery for gallery in self._galleries if gallery is not None]
        numbers = np.concatenate([np.empty(0, np.int32), *known])
        names = pa.array([self._key(image) for image in self._numbers], pa.string())
        keys = pa.DictionaryArray.from_arrays(numbers, names)
        unlimited = pa.array([gallery is None for gallery in self._galleries], pa.bool_())
        return pa.ListArray.from_arrays(pa.array(offsets), keys, mask=unlimited)
