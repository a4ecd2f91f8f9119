"""From a stored sample to two finished views: crop, decode once, augment, place the boxes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.annotation import Annotation
from pipeline.augment import AugmentConfig, draw_recipe, erase, render
from pipeline.batch import FILL_RGB, Use
from pipeline.decode import Pixels, decode, image_size
from pipeline.keyed import Draws
from pipeline.samples import BadSample, Sample
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


@dataclass(frozen=True)
class RenderedView:
    """What is left of a view when its pixels are in the batch."""

    valid: Size
    boxes: Boxes
    use: NDArray[np.int64]


@dataclass(frozen=True)
class Renderer:
    """Makes views of one task; a pure function of its arguments, safe in threads."""

    task: TaskName
    size: Size
    config: AugmentConfig

    def render(
        self, sample: Sample, draws: tuple[Draws, Draws], out: tuple[Pixels, Pixels]
    ) -> tuple[RenderedView, RenderedView]:
        """Fills two (H, W, 3) views. Raises BadSample or DecodeError."""
        annotation = sample.annotation
        size = Size(annotation.height, annotation.width)
        if image_size(sample.image, sample.image_type) != size:
            raise BadSample("the image has not the size that its annotation says")
        boxes = np.array([person.box for person in annotation.persons], float).reshape(-1, 4)
        crops = (self._crop(size, boxes, draws[0]), self._crop(size, boxes, draws[1]))
        halved = halvings(crops)
        image = decode(sample.image, sample.image_type, halved)
        first, second = (
            self._render_view(image, halved, crops[view], annotation, boxes, draws[view], out[view])
            for view in (0, 1)
        )
        return first, second

    def _crop(self, size: Size, boxes: Boxes, draws: Draws) -> Crop:
        if self.task == "detection":
            return scene_crop(size, self.size, self.config.scene_scale, draws)
        return canvas_crop(size, boxes, self.size, self.config.canvas_side, draws)

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
        recipe = draw_recipe(self.config, crop, len(boxes), draws)
        grid = on_grid(crop, Size(*image.shape[:2]), halved)
        ignore = np.array([person.ignore for person in annotation.persons], bool)
        placed, use = place_boxes(
            boxes,
            ignore,
            Size(annotation.height, annotation.width),
            grid,
            recipe.flip,
            self.config.thresholds,
        )
        height, width = crop.size
        content = out[:height, :width]
        content[:] = render(image, grid, recipe, self.config.mode)
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
