"""The settings of a stream, as `stream:` in a run file has them."""

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.rendering.augment import AugmentConfig
from pipeline.rendering.geometry import Size
from pipeline.rendering.renderer import TaskName
from pipeline.stores.node_cache import CacheConfig

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
MixtureKey = Literal["scenes", "canvases"]
MIXTURE_KEYS: dict[TaskName, MixtureKey] = {"detection": "scenes", "reid": "canvases"}
"""Where the settings name a task's shard sets, and what its images are called."""


class MixtureEntry(Config):
    """A shard set and its share of the draws."""

    shards: str
    """URL of the shard set."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Its draws against those of the others; only ratios matter."""
    selection: str | None = None
    """File of `python -m pipeline select`: its samples alone are drawn."""


class SegmentConfig(Config):
    """Another mixture from a step on. Samples go on where they were: a dataset's epoch is not begun anew."""

    from_step: Positive
    scenes: tuple[MixtureEntry, ...] | None = None
    """Left out: as before."""
    canvases: tuple[MixtureEntry, ...] | None = None
    """Left out: as before."""


class TaskSettings(NamedTuple):
    """What is said of one task."""

    batch: int
    """Images in a step, over all ranks and micro-steps."""
    group: int
    """Images drawn together."""
    size: Size
    """Of its views."""


class StreamConfig(Config):
    """What is streamed. From `threads` on, nothing decides what comes when."""

    seed: int = 0
    """Of the order and of the augmentation."""
    scenes: tuple[MixtureEntry, ...] = ()
    """Shard sets of whole scenes: detection, or search."""
    canvases: tuple[MixtureEntry, ...] = ()
    """Shard sets of re-ID crops on canvases."""
    segments: tuple[SegmentConfig, ...] = ()
    """Changes of the mixture, by the step that they begin with; one may be added to a run under way."""
    scene_batch: Count = 0
    """Scenes in a step, over all ranks and micro-steps; 0: no scenes."""
    canvas_batch: Count = 0
    """Canvases in a step, over all ranks and micro-steps; 0: no canvases."""
    scene_size: tuple[Positive, Positive] = (416, 736)
    """Height and width of a scene's views."""
    canvas_size: tuple[Positive, Positive] = (384, 192)
    """Height and width of a canvas's views."""
    canvas_group: Positive = 2
    """Canvases drawn together from one dataset: crops of one identity, where shards hold such runs."""
    lanes: Positive | None = None
    """Parts of a batch with shards of their own; default: the largest divisor of a batch up to 64."""
    block: Positive = 4
    """Shards shuffled together."""
    views: AugmentConfig = AugmentConfig()
    """How the views of an image are made."""
    threads: Positive = 2
    """Threads that read, decode and augment, in every rank."""
    workers: Literal["threads", "processes"] = "threads"
    """`processes`: each thread hands its work to a process, for transforms that hold the interpreter."""
    prefetch: Positive = 2
    """Micro-batches made ahead."""
    cache: CacheConfig | None = None
    """Where the shards of stores are kept on a node; none: they are read by ranges, a request a sample."""
    check_tars: bool = False
    """Hash each shard on a disk when it is opened first: reads it once more, at 1 to 2 GB/s of a core."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of a dataset's samples that may be unusable before the stream stops."""
    max_bad_run: Positive = 100
    """Unusable samples of a dataset in a row, in a rank's order, that stop the stream."""

    @model_validator(mode="after")
    def _check_segments(self) -> "StreamConfig":
        steps = [segment.from_step for segment in self.segments]
        if steps != sorted(set(steps)):
            raise ValueError("segments must begin at steps that rise")
        return self

    def task(self, name: TaskName) -> TaskSettings:
        if name == "detection":
            return TaskSettings(self.scene_batch, 1, Size(*self.scene_size))
        return TaskSettings(self.canvas_batch, self.canvas_group, Size(*self.canvas_size))

    def mixtures(self, name: TaskName) -> list[tuple[int, tuple[MixtureEntry, ...]]]:
        """Every mixture that a task has in turn, and the step that it begins with."""
        key = MIXTURE_KEYS[name]
        found: list[tuple[int, tuple[MixtureEntry, ...]]] = [(0, getattr(self, key))]
        for segment in self.segments:
            entries = getattr(segment, key)
            if entries is not None and entries != found[-1][1]:
                found.append((segment.from_step, entries))
        return found


def check_sizes(config: StreamConfig, slices: int) -> None:
    """Raises UserError unless `slices` (world size x accumulation) divides both batches."""
    sizes = {"scene_batch": config.scene_batch, "canvas_batch": config.canvas_batch}
    if not any(sizes.values()):
        raise UserError("the stream is empty: set scene_batch, canvas_batch, or both.")
    common = math.gcd(*sizes.values())
    if common % slices:
        fitting = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        batches = " and ".join(f"{name} {size}" for name, size in sizes.items() if size)
        raise UserError(
            f"world size x accumulation is {slices}, which does not divide {batches}. "
            f"It can be {fitting}; or change the batch."
        )
    if config.canvas_batch % config.canvas_group:
        raise UserError(
            f"canvas_batch {config.canvas_batch} is not a multiple of canvas_group "
            f"{config.canvas_group}: a group would be torn over two batches."
        )
