"""One task's half of the stream, scenes or canvases: from a position to finished views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.ledger import BadRecord
from pipeline.order import Order, Place
from pipeline.rendering.augment import AugmentConfig
from pipeline.rendering.decode import DecodeError, Pixels
from pipeline.rendering.geometry import Size
from pipeline.rendering.renderer import RenderedView, Renderer, TaskName, view_draws
from pipeline.samples import BadSample, Sample, SampleReader

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
    views: tuple[RenderedView, ...]
    replaced: tuple[BadRecord, ...]
    """Samples that were to come here and could not be used."""


class Exhausted(UserError):
    """Neither a sample nor what could replace it is usable."""

    def __init__(self, message: str, replaced: tuple[BadRecord, ...]) -> None:
        super().__init__(message, replaced)  # both, or it could not be sent between processes
        self.message, self.replaced = message, replaced

    def __str__(self) -> str:
        return self.message


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
        self.renderer, self._identities = Renderer(name, size, views), identities

    @property
    def batch(self) -> int:
        return self.order.batch

    def definition(self, before_step: int | None) -> dict[str, Any]:
        """What decides which samples come, up to a step: its sources and the turns that each has."""
        stretches = self.order.stretches_before(before_step)
        sources = 1 + max(max(stretch.members) for stretch in stretches)
        return {
            "batch": self.batch,
            "size": list(self.size),
            "group": self.order.group,
            "lanes": self.order.lanes,
            "block": self.order.block,
            "sources": [reader.definition for reader in self.readers[:sources]],
            "segments": [
                {
                    "first_step": stretch.first_batch,
                    "cycle": stretch.mixture.cycle,
                    "turns": dict(zip(stretch.members, stretch.mixture.counts, strict=True)),
                }
                for stretch in stretches
            ],
        }

    def key(self, position: int) -> str:
        """The sample that the order asks for, which is another than the one delivered if it is bad."""
        for place in self._places(position):
            key = self.readers[place.source].key(place.shard, place.slot)
            if key is not None:
                return key
        raise self._exhausted(position, ())

    def place(self, position: int, key: str) -> Place:
        """Where the sample `key` lies that came at `position`: in its place, or in a replacement's."""
        return next(
            place
            for place in self._places(position)
            if self.readers[place.source].key(place.shard, place.slot) == key
        )

    def render(self, position: int, out: tuple[Pixels, ...]) -> Rendered:
        """Fills `out`, as `Renderer.render` does, with the sample at `position` or what replaces it.

        Raises Exhausted.
        """
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
        raise self._exhausted(position, tuple(replaced))

    def _places(self, position: int) -> Iterator[Place]:
        yield self.order.at(position)
        for attempt in range(MOST_REPLACEMENTS):
            yield self.order.replacement(position, attempt)

    def _render(
        self, place: Place, out: tuple[Pixels, ...], replaced: tuple[BadRecord, ...]
    ) -> Rendered:
        reader = self.readers[place.source]
        samples = self._read(place)
        annotation = samples[0].annotation
        draws = view_draws(self.order.seed, annotation.key, place.epoch)
        views = self.renderer.render(samples, draws, out)
        rows = [self._identities.row(annotation.dataset, p.identity) for p in annotation.persons]
        return Rendered(
            key=annotation.key,
            dataset=reader.name,
            domain=self.domains.index(reader.manifest.domain),
            identity=np.array(rows, np.int64),
            views=views,
            replaced=replaced,
        )

    def _read(self, place: Place) -> tuple[Sample, Sample]:
        """For each view; one and the same unless each has a variant of its own."""
        reader, (first, second) = self.readers[place.source], self.variants(place)
        sample = reader.read(first, place.shard, place.slot)
        if second == first:
            return sample, sample
        try:
            return sample, reader.read(second, place.shard, place.slot)
        except BadSample as problem:
            raise BadSample(
                f"in variant {second}, which is for its other view: {problem}"
            ) from None

    def variants(self, place: Place) -> tuple[int, int]:
        """Each epoch reads the next variant, so that no placement of a crop is for ever.

        With `two_variants` the second view of a canvas reads another: V (V - 1) epochs have every pair.
        """
        count = self.readers[place.source].manifest.variants
        first = place.epoch % count
        if self.name != "reid" or not self.renderer.config.two_variants:
            return first, first
        return first, (first + 1 + place.epoch // count % (count - 1)) % count

    def origin(self, place: Place) -> tuple[str, int]:
        reader = self.readers[place.source]
        return reader.origin(self.variants(place)[0], place.shard, place.slot)

    def _record(self, position: int, place: Place, key: str, reason: str) -> BadRecord:
        url, offset = self.origin(place)
        return BadRecord(self.readers[place.source].name, key, url, offset, position, reason)

    def _exhausted(self, position: int, replaced: tuple[BadRecord, ...]) -> Exhausted:
        reader = self.readers[self.order.at(position).source]
        why = replaced[-1].reason if replaced else "all of them were forgotten"
        return Exhausted(
            f"{reader.shard_set.url}: the sample at position {position} cannot be used, nor can "
            f"{MOST_REPLACEMENTS} that could replace it; the last one: {why}. "
            f"`python -m sharding verify {reader.shard_set.url}` tells what is wrong.",
            replaced,
        )
