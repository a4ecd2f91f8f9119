"""From stored samples to finished views: crop, decode once, augment, place the boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Use, View
from pipeline.keyed import Draws
from pipeline.rendering.augment import AugmentConfig, Recipe, draw_recipe, erased_part, fill
from pipeline.rendering.decode import Pixels, decode, image_size
from pipeline.rendering.device_base import Base, Warp, buffer_size, join_warps, lay_base
from pipeline.rendering.device_views import Unrendered
from pipeline.rendering.geometry import (
    Boxes,
    Crop,
    GridCrop,
    Size,
    canvas_crop,
    halvings,
    on_grid,
    place_boxes,
    scene_crop,
)
from pipeline.rendering.modes import render
from pipeline.rendering.transforms import transform
from pipeline.samples import BadSample, Sample

TaskName = Literal["detection", "reid"]


def view_draws(seed: int, key: str, epoch: int) -> tuple[Draws, Draws]:
    """All randomness of a sample's views in one pass over its dataset."""
    return Draws(seed, "view", key, epoch, 0), Draws(seed, "view", key, epoch, 1)


@dataclass(frozen=True)
class RenderedView:
    """What is left of a view when its pixels are in the batch."""

    valid: Size
    boxes: Boxes
    use: NDArray[np.int64]
    warp: Warp | None = None
    """Mode device: how its pixels come out of what is in the batch."""


class Shot(NamedTuple):
    """A view as it is decided, before a pixel of it is made."""

    image: Pixels
    """As decoded."""
    crop: GridCrop
    recipe: Recipe
    boxes: Boxes
    use: NDArray[np.int64]

    def erased(self) -> NDArray[np.int64]:
        """(P, 4) xyxy in whole pixels; zeros for persons that lose nothing, as all do that do not MATCH."""
        parts = np.zeros((len(self.boxes), 4), np.int64)
        for person in np.flatnonzero(self.use == Use.MATCH):
            part = self.recipe.erasures[person]
            if part is not None:
                parts[person] = erased_part(self.boxes[person], part)
        return parts


class _Frame(NamedTuple):
    """A sample, and what its annotation says of its geometry."""

    sample: Sample
    size: Size
    boxes: Boxes
    ignore: NDArray[np.bool_]

    @classmethod
    def of(cls, sample: Sample) -> "_Frame":
        annotation = sample.annotation
        size = Size(annotation.height, annotation.width)
        if image_size(sample.image, sample.image_type) != size:
            raise BadSample("the image has not the size that its annotation says")
        boxes = np.array([person.box for person in annotation.persons], float).reshape(-1, 4)
        ignore = np.array([person.ignore for person in annotation.persons], bool)
        return cls(sample, size, boxes, ignore)


class _Window(NamedTuple):
    """What a view shows of a decoded image."""

    frame: _Frame
    image: Pixels
    crop: Crop
    grid: GridCrop


@dataclass(frozen=True)
class Renderer:
    """Makes views of one task; a pure function of its arguments, safe in threads."""

    task: TaskName
    size: Size
    config: AugmentConfig

    @property
    def buffers(self) -> tuple[Size, ...]:
        """Sizes of what an image is rendered into: its views, or what a device makes them from."""
        if self.config.mode != "device" or (self.task == "reid" and self.config.two_variants):
            return (self.size,) * self.config.number
        largest_scene, smallest_window = self.config.scene_scale[1], self.config.canvas_side[0]
        zoom = max(1.0, largest_scene) if self.task == "detection" else 1 / smallest_window
        return (buffer_size(self.size, zoom),)

    def render(
        self, samples: tuple[Sample, Sample], draws: tuple[Draws, Draws], out: tuple[Pixels, ...]
    ) -> tuple[RenderedView, ...]:
        """Fills `out`, (H, W, 3) of the sizes `buffers`. The sample of each view may be one and the same.

        Raises BadSample or DecodeError.
        """
        windows = self._windows(samples, draws)
        shown = draws[: self.config.number]
        shots = [self._shot(window, drawn) for window, drawn in zip(windows, shown)]
        warps: Sequence[Warp | None] = [None] * len(shots)
        if self.config.mode == "device":
            bases = _lay_bases(windows, out)
            warps = [Warp.of(b, s.crop, s.recipe, s.erased()) for b, s in zip(bases, shots)]
        else:
            for shot, drawn, pixels in zip(shots, shown, out, strict=True):
                self._paint(shot, drawn, pixels)
        return tuple(
            RenderedView(shot.crop.size, shot.boxes, shot.use, warp)
            for shot, warp in zip(shots, warps, strict=True)
        )

    def join(
        self, buffers: Sequence[Tensor], rendered: Sequence[tuple[RenderedView, ...]]
    ) -> tuple[tuple[View, ...], Unrendered | None]:
        """The views of a batch: of its `buffers`, (N, H, W, 3) each, and of what `render` returned."""
        columns = list(zip(*rendered, strict=True))
        unrendered, pixels = None, buffers
        if self.config.mode == "device":
            warps = tuple(join_warps([v.warp for v in views if v.warp]) for views in columns)
            unrendered = Unrendered(self.size, tuple(buffers), warps)
            pixels = [torch.empty((0, *self.size, 3), dtype=torch.uint8)] * len(columns)
        views = tuple(_join_view(*parts) for parts in zip(pixels, columns, strict=True))
        return views, unrendered

    def _windows(self, samples: tuple[Sample, Sample], draws: tuple[Draws, Draws]) -> list[_Window]:
        """Of two views, also where the first alone is shown: they decide together how finely to decode."""
        one = samples[0] is samples[1]
        first = _Frame.of(samples[0])
        second = first if one else _Frame.of(samples[1])
        crops = self._crop(first, draws[0]), self._crop(second, draws[1])
        if one:
            return self._decode(first, crops)
        _check_same_persons(samples)
        return self._decode(first, crops[:1]) + self._decode(second, crops[1:])

    def _crop(self, frame: _Frame, draws: Draws) -> Crop:
        if self.task == "detection":
            return scene_crop(frame.size, self.size, self.config.scene_scale, draws)
        return canvas_crop(frame.size, frame.boxes, self.size, self.config.canvas_side, draws)

    def _decode(self, frame: _Frame, crops: Sequence[Crop]) -> list[_Window]:
        halved = halvings(crops)
        fast = self.config.mode in ("fast", "device")
        image = decode(frame.sample.image, frame.sample.image_type, halved, fast)
        size = Size(*image.shape[:2])
        return [_Window(frame, image, crop, on_grid(crop, size, halved)) for crop in crops]

    def _shot(self, window: _Window, draws: Draws) -> Shot:
        frame, image, crop, grid = window
        recipe = draw_recipe(self.config, crop, len(frame.boxes), draws)
        boxes, use = place_boxes(
            frame.boxes, frame.ignore, frame.size, grid, recipe.flip, self.config.thresholds
        )
        return Shot(image, grid, recipe, boxes, use)

    def _paint(self, shot: Shot, draws: Draws, out: Pixels) -> None:
        height, width = shot.crop.size
        content = out[:height, :width]
        render(shot.image, shot.crop, shot.recipe, self.config.mode, content)
        if self.config.transform is not None:
            transform(self.config.transform, content, draws)
        for part in shot.erased().tolist():
            fill(content, *part)
        fill(out, 0, height, self.size.width, self.size.height)
        fill(out, width, 0, self.size.width, height)


def _lay_bases(windows: Sequence[_Window], buffers: Sequence[Pixels]) -> list[Base]:
    """Of each window: one for all of them, or one for each."""
    if len(buffers) == 1:
        base = lay_base(windows[0].image, [window.grid for window in windows], buffers[0])
        return [base] * len(windows)
    return [lay_base(each.image, [each.grid], out) for each, out in zip(windows, buffers)]


def _check_same_persons(samples: tuple[Sample, Sample]) -> None:
    """Of two variants: only pixels and boxes may differ."""
    first, second = (
        (sample.annotation.key, [(p.identity, p.ignore) for p in sample.annotation.persons])
        for sample in samples
    )
    if first != second:
        raise BadSample("its two variants do not show the same persons")


def _join_view(pixels: Tensor, views: Sequence[RenderedView]) -> View:
    return View(
        pixels=pixels,
        valid=torch.tensor([view.valid for view in views]),
        boxes=torch.from_numpy(np.concatenate([view.boxes for view in views]).astype(np.float32)),
        use=torch.from_numpy(np.concatenate([view.use for view in views])),
    )
