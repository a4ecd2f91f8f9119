"""The batch: what a rank gets for one micro-step, the contract of stream and trainer.

Shapes: N images in V views, P persons of these images, H x W the fixed size of a view.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from pipeline.annotation import FILL_RGB as FILL_RGB  # padding of the views
from pipeline.rendering.device_views import Unrendered


class Use(IntEnum):
    """What a person in one view may be used for."""

    ABSENT = 0
    """Not in this view."""
    IGNORE = 1
    """A region that is neither positive nor negative."""
    DETECT = 2
    """A positive for detection; too cut or too small for re-ID."""
    MATCH = 3
    """Detection, OIM, and L_con if it is unlabelled and MATCH in the other view too."""


@dataclass(frozen=True)
class View:
    pixels: Tensor
    """(N, H, W, 3) uint8 RGB; content at the top left, the rest is FILL_RGB. No rows if `unrendered`."""
    valid: Tensor
    """(N, 2) int64, height and width of the content, in pixels."""
    boxes: Tensor
    """(P, 4) float32 xyxy in pixels of this view, clipped to the content; zeros where ABSENT."""
    use: Tensor
    """(P,) int64, values of `Use`."""


@dataclass(frozen=True)
class Persons:
    """Copies on the host: counts and indices made of them need not wait for a GPU."""

    image: Tensor
    """(P,)"""
    use: Tensor
    """(V, P) in each view."""


@dataclass(frozen=True)
class Images:
    """Scenes or canvases in one view or two. The same person has the same row in both."""

    views: tuple[View, ...]
    position: Tensor
    """(N,) int64 global position in the order of scenes or of canvases; ascending."""
    domain: Tensor
    """(N,) int64 index into the stream's `domains` of this task."""
    image: Tensor
    """(P,) int64 index of the person's image in this batch; ascending."""
    person: Tensor
    """(P,) int64 number of the person in its image, as annotated."""
    identity: Tensor
    """(P,) int64 row of the look-up table, -1 where unlabelled."""
    keys: tuple[str, ...]
    """(N,) sample keys."""
    unrendered: Unrendered | None = None
    """Mode device: what `to` makes the views' pixels from, on that device; all else is there before."""
    host_persons: Persons | None = None
    """Kept by `to`."""

    @property
    def shown(self) -> int:
        """V N: an image in each of its views."""
        return len(self.views) * len(self.keys)

    @property
    def use(self) -> Tensor:
        """(V, P) in each view."""
        return torch.stack([view.use for view in self.views])

    @property
    def valid(self) -> Tensor:
        """(V N, 2) of the first views, then of the second ones."""
        return torch.cat([view.valid for view in self.views])

    def for_views(self, each: Tensor) -> Tensor:
        """(V N,): what each image (N,) has, for the first views, then for the second ones."""
        return each.repeat(len(self.views))

    def persons(self) -> Persons:
        """On the host; waits for the device if these images were made there."""
        if self.host_persons is not None:
            return self.host_persons
        return Persons(self.image.cpu(), self.use.cpu())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Images":
        """The same on `device`, with pixels."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        moved = replace(
            self,
            views=tuple(
                View(move(v.pixels), move(v.valid), move(v.boxes), move(v.use)) for v in self.views
            ),
            position=move(self.position),
            domain=move(self.domain),
            image=move(self.image),
            person=move(self.person),
            identity=move(self.identity),
            unrendered=self.unrendered and self.unrendered.to(device, non_blocking),
            host_persons=self.persons(),
        )
        return moved if moved.unrendered is None else _with_pixels(moved, moved.unrendered)


def _with_pixels(images: Images, source: Unrendered) -> Images:
    views = tuple(
        replace(view, pixels=source.render(number, view.valid, images.image))
        for number, view in enumerate(images.views)
    )
    return replace(images, views=views, unrendered=None)


@dataclass(frozen=True)
class Batch:
    """A rank's part of one micro-step; a task with batch size 0 is None."""

    step: int
    """Index of the global batch that this is a part of."""
    scenes: Images | None
    canvases: Images | None

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(
            self.step,
            self.scenes and self.scenes.to(device),
            self.canvases and self.canvases.to(device),
        )
