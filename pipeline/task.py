"""One task's half of the stream, scenes or canvases: from a position to two finished views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.annotation import Annotation
from pipeline.augment import AugmentConfig, draw_recipe, erase, render
from pipeline.batch import FILL_RGB, Use
from pipeline.decode import DecodeError, Pixels, decode, image_size
from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.keyed import Draws
from pipeline.ledger import BadRecord, Ledger
from pipeline.order import Order, Place
from pipeline.samples import BadSample, SampleReader
from pipeline.views import (
    Boxes,
    Crop,
    Size,
    canvas_crop,
    halvings,
    on_grid,
    place_boxes,
    scene_crop,
)

TaskName = Literal["detection", "reid"]
MOST_REPLACEMENTS = 16


@dataclass(frozen=True)
class RenderedView:
    """What is left of a view when its pixels are in the batch."""

    valid: Size
    boxes: Boxes
    use: NDArray[np.int64]


@dataclass(frozen=True)
class Rendered:
    key: str
    domain: int
    identity: NDArray[np.int64]
    """(P,) rows of the look-up table."""
    views: tuple[RenderedView, RenderedView]


class TaskStream:
    """Every method is a pure function of the position (but for the ledger), and safe in threads."""

    def __init__(
        self,
        name: TaskName,
        order: Order,
        readers: Sequence[SampleReader],
        size: Size,
        views: AugmentConfig,
        identities: Identities,
        ledger: Ledger,
    ) -> None:
        self.name, self.order, self.readers, self.size = name, order, readers, size
        self.domains = tuple(dict.fromkeys(reader.manifest.domain for reader in readers))
        self._views, self._identities, self._ledger = views, identities, ledger

    @property
    def batch(self) -> int:
        return self.order.batch

    def key(self, position: int) -> str:
        """The sample that the order asks for, which is another than the one delivered if it is bad."""
        for place in self._places(position):
            key = self.readers[place.source].key(place.shard, place.slot)
            if key is not None:
                return key
        raise self._exhausted(position)

    def render(self, position: int, out: tuple[Pixels, Pixels]) -> Rendered:
        """Fills two (H, W, 3) views with the sample at `position`, or with what replaces it."""
        for place in self._places(position):
            reader = self.readers[place.source]
            key = reader.key(place.shard, place.slot)
            if key is None:
                continue
            try:
                rendered = self._render(place, out)
            except (BadSample, DecodeError) as problem:
                self._report(position, place, key, str(problem))
            except Exception as error:
                url, offset = self.origin(place)
                error.add_note(f"while reading sample {key} in {url} at byte {offset}")
                raise
            else:
                self._ledger.count(reader.name)
                return rendered
        raise self._exhausted(position)

    def _places(self, position: int) -> Iterator[Place]:
        yield self.order.at(position)
        for attempt in range(MOST_REPLACEMENTS):
            yield self.order.replacement(position, attempt)

    def _render(self, place: Place, out: tuple[Pixels, Pixels]) -> Rendered:
        reader = self.readers[place.source]
        annotation, coded, image_type = reader.read(self._variant(place), place.shard, place.slot)
        size = Size(annotation.height, annotation.width)
        if image_size(coded, image_type) != size:
            raise BadSample("the image has not the size that its annotation says")
        boxes = np.array([person.box for person in annotation.persons], float).reshape(-1, 4)
        draws = [
            Draws(self.order.seed, "view", annotation.key, place.epoch, view) for view in (0, 1)
        ]
        crops = (self._crop(size, boxes, draws[0]), self._crop(size, boxes, draws[1]))
        halved = halvings(crops)
        image = decode(coded, image_type, halved)
        first, second = (
            self._render_view(image, halved, crops[view], annotation, boxes, draws[view], out[view])
            for view in (0, 1)
        )
        rows = [self._identities.row(annotation.dataset, p.identity) for p in annotation.persons]
        return Rendered(
            key=annotation.key,
            domain=self.domains.index(reader.manifest.domain),
            identity=np.array(rows, np.int64),
            views=(first, second),
        )

    def _crop(self, size: Size, boxes: Boxes, draws: Draws) -> Crop:
        if self.name == "detection":
            return scene_crop(size, self.size, self._views.scene_scale, draws)
        return canvas_crop(size, boxes, self.size, self._views.canvas_side, draws)

    def _render_view(
        self,
        image: Pixels,
        halved: int,
        crop: Crop,
        annotation: Annotation,
        boxes: Boxes,
        draws: Draws,
        out: Pixels,
    ) -> RenderedView:
        recipe = draw_recipe(self._views, crop, len(boxes), draws)
        grid = on_grid(crop, Size(*image.shape[:2]), halved)
        ignore = np.array([person.ignore for person in annotation.persons], bool)
        placed, use = place_boxes(
            boxes,
            ignore,
            Size(annotation.height, annotation.width),
            grid,
            recipe.flip,
            self._views.thresholds,
        )
        height, width = crop.size
        content = out[:height, :width]
        content[:] = render(image, grid, recipe, self._views.mode)
        erase(
            content,
            placed,
            tuple(
                part if fit else None
                for part, fit in zip(recipe.erasures, use == Use.MATCH, strict=True)
            ),
        )
        out[height:] = FILL_RGB
        out[:height, width:] = FILL_RGB
        return RenderedView(crop.size, placed, use)

    def _variant(self, place: Place) -> int:
        """Each epoch reads the next variant, so that no placement of a crop is for ever."""
        return place.epoch % self.readers[place.source].manifest.variants

    def origin(self, place: Place) -> tuple[str, int]:
        reader = self.readers[place.source]
        return reader.origin(self._variant(place), place.shard, place.slot)

    def _report(self, position: int, place: Place, key: str, reason: str) -> None:
        url, offset = self.origin(place)
        name = self.readers[place.source].name
        self._ledger.add(BadRecord(name, key, url, offset, position, reason))

    def _exhausted(self, position: int) -> UserError:
        reader = self.readers[self.order.at(position).source]
        return UserError(
            f"{reader.shard_set.url}: the sample at position {position} cannot be used, nor can "
            f"{MOST_REPLACEMENTS} that could replace it. "
            f"`python -m sharding verify {reader.shard_set.url}` tells what is wrong."
        )
