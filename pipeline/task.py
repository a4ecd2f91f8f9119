"""One task's half of the stream, scenes or canvases: from a position to two finished views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.augment import AugmentConfig
from pipeline.decode import DecodeError, Pixels
from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.keyed import Draws
from pipeline.ledger import BadRecord
from pipeline.order import Order, Place
from pipeline.render import RenderedView, Renderer, TaskName
from pipeline.samples import BadSample, SampleReader
from pipeline.views import Size

MOST_REPLACEMENTS = 16


@dataclass(frozen=True)
class Rendered:
    """A sample whose pixels are in the batch."""

    key: str
    dataset: str
    """Name of its shard set."""
    domain: int
    identity: NDArray[np.int64]
    """(P,) rows of the look-up table."""
    views: tuple[RenderedView, RenderedView]
    replaced: tuple[BadRecord, ...]
    """Samples that were to come here and could not be used."""


class TaskStream:
    """Every method is a pure function of the position, and safe in threads."""

    def __init__(
        self,
        name: TaskName,
        order: Order,
        readers: Sequence[SampleReader],
        size: Size,
        views: AugmentConfig,
        identities: Identities,
    ) -> None:
        self.name, self.order, self.readers, self.size = name, order, readers, size
        self.domains = tuple(dict.fromkeys(reader.manifest.domain for reader in readers))
        self._renderer, self._identities = Renderer(name, size, views), identities

    @property
    def batch(self) -> int:
        return self.order.batch

    def key(self, position: int) -> str:
        """The sample that the order asks for, which is another than the one delivered if it is bad."""
        for place in self._places(position):
            key = self.readers[place.source].key(place.shard, place.slot)
            if key is not None:
                return key
        raise self._exhausted(position, "all of them were forgotten")

    def render(self, position: int, out: tuple[Pixels, Pixels]) -> Rendered:
        """Fills two (H, W, 3) views with the sample at `position`, or with what replaces it."""
        replaced: list[BadRecord] = []
        for place in self._places(position):
            key = self.readers[place.source].key(place.shard, place.slot)
            if key is None:
                continue
            try:
                return self._render(place, out, tuple(replaced))
            except (BadSample, DecodeError) as problem:
                replaced.append(self._record(position, place, key, str(problem)))
            except Exception as error:
                url, offset = self.origin(place)
                error.add_note(f"while reading sample {key} in {url} at byte {offset}")
                raise
        raise self._exhausted(position, replaced[-1].reason if replaced else "all were forgotten")

    def _places(self, position: int) -> Iterator[Place]:
        yield self.order.at(position)
        for attempt in range(MOST_REPLACEMENTS):
            yield self.order.replacement(position, attempt)

    def _render(
        self, place: Place, out: tuple[Pixels, Pixels], replaced: tuple[BadRecord, ...]
    ) -> Rendered:
        reader = self.readers[place.source]
        sample = reader.read(self._variant(place), place.shard, place.slot)
        annotation = sample.annotation
        first, second = (
            Draws(self.order.seed, "view", annotation.key, place.epoch, view) for view in (0, 1)
        )
        views = self._renderer.render(sample, (first, second), out)
        rows = [self._identities.row(annotation.dataset, p.identity) for p in annotation.persons]
        return Rendered(
            key=annotation.key,
            dataset=reader.name,
            domain=self.domains.index(reader.manifest.domain),
            identity=np.array(rows, np.int64),
            views=views,
            replaced=replaced,
        )

    def _variant(self, place: Place) -> int:
        """Each epoch reads the next variant, so that no placement of a crop is for ever."""
        return place.epoch % self.readers[place.source].manifest.variants

    def origin(self, place: Place) -> tuple[str, int]:
        reader = self.readers[place.source]
        return reader.origin(self._variant(place), place.shard, place.slot)

    def _record(self, position: int, place: Place, key: str, reason: str) -> BadRecord:
        url, offset = self.origin(place)
        return BadRecord(self.readers[place.source].name, key, url, offset, position, reason)

    def _exhausted(self, position: int, why: str) -> UserError:
        reader = self.readers[self.order.at(position).source]
        return UserError(
            f"{reader.shard_set.url}: the sample at position {position} cannot be used, nor can "
            f"{MOST_REPLACEMENTS} that could replace it; the last one: {why}. "
            f"`python -m sharding verify {reader.shard_set.url}` tells what is wrong."
        )
