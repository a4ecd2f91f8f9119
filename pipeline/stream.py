"""The stream: deterministic, elastic batches of scenes and canvases out of shard sets.

What comes at a position is a pure function of the stream's definition, so the state to resume from
is a number, whatever the world size, accumulation and threads of either run.
"""

import hashlib
import json
import math
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import cv2
from pydantic import Field

from pipeline.annotation import Task
from pipeline.augment import AugmentConfig
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.ledger import Ledger
from pipeline.loading import Batches, LoaderStats, Part
from pipeline.order import Order, Source, default_lanes
from pipeline.samples import SampleReader
from pipeline.shards import ShardSet
from pipeline.task import TaskName, TaskStream
from pipeline.views import Size

ORDER_VERSION = 1
"""Raised with every change of the code that moves a sample or a pixel."""

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Ids = dict[str, list[tuple[int, str]]]
"""(position, key) of a global batch, by task."""


class MixtureEntry(Config):
    """A shard set and its share of the draws."""

    shards: str
    """URL of the shard set."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Its draws against those of the others; only ratios matter."""


class StreamConfig(Config):
    """What is streamed. All but `threads`, `prefetch` and `max_bad_share` decides what comes when."""

    seed: int = 0
    """Of the order and of the augmentation."""
    scenes: tuple[MixtureEntry, ...] = ()
    """Shard sets of whole scenes: detection, or search."""
    canvases: tuple[MixtureEntry, ...] = ()
    """Shard sets of re-ID crops on canvases."""
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
    """How the two views of an image are made."""
    threads: Positive = 2
    """Threads that read, decode and augment, in every rank."""
    prefetch: Positive = 2
    """Micro-batches made ahead."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of a dataset's samples that may be unusable before the stream stops."""


class Stream:
    """One rank's part of the batches; made by `open`."""

    def __init__(
        self,
        config: StreamConfig,
        tasks: dict[TaskName, TaskStream],
        identities: Identities,
        ledger: Ledger,
        part: tuple[int, int, int],
    ) -> None:
        self.config, self.identities, self.ledger = config, identities, ledger
        self.rank, self.world_size, self.accumulation = part
        self.stats = LoaderStats()
        self.tasks = tasks

    @classmethod
    def open(
        cls,
        config: StreamConfig,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        ledger_path: Path | None = None,
    ) -> "Stream":
        """Reads manifests alone. Raises UserError on a missing shard set and on sizes that do not fit."""
        check_sizes(config, world_size * accumulation)
        cv2.setNumThreads(1)  # a thread of ours per sample is parallel enough
        readers: dict[TaskName, list[SampleReader]] = {}
        if config.scene_batch:
            near = _shards_near(config, "detection", world_size)
            readers["detection"] = _open_readers(
                config.scenes, "scenes", ("detection", "search"), near
            )
        if config.canvas_batch:
            near = _shards_near(config, "reid", world_size)
            readers["reid"] = _open_readers(config.canvases, "canvases", ("reid",), near)
        identities = Identities()
        for reader in [*readers.get("reid", ()), *readers.get("detection", ())]:
            identities = identities.extended(reader.manifest.dataset, reader.manifest.identities)
        ledger = Ledger(config.max_bad_share, ledger_path)
        tasks = {
            name: TaskStream(
                name,
                _order(config, name, task_readers),
                task_readers,
                Size(*(config.scene_size if name == "detection" else config.canvas_size)),
                config.views,
                identities,
                ledger,
            )
            for name, task_readers in readers.items()
        }
        return cls(config, tasks, identities, ledger, (rank, world_size, accumulation))

    @property
    def domains(self) -> dict[str, tuple[str, ...]]:
        """What `Images.domain` counts, by task; a task that is off has none."""
        names: tuple[TaskName, TaskName] = ("detection", "reid")
        return {n: self.tasks[n].domains if n in self.tasks else () for n in names}

    @property
    def definition(self) -> dict[str, Any]:
        """Everything that decides what comes when, to be stored with a run."""
        return {
            "order_version": ORDER_VERSION,
            "seed": self.config.seed,
            "views": self.config.views.model_dump(mode="json"),
            "tasks": {
                name: {
                    "batch": task.batch,
                    "size": list(task.size),
                    "group": task.order.group,
                    "lanes": task.order.lanes,
                    "block": task.order.block,
                    "cycle": task.order.mixture.cycle,
                    "sources": [
                        {"name": r.name, "turns": turns, "manifest": r.shard_set.manifest_sha256}
                        for r, turns in zip(task.readers, task.order.mixture.counts, strict=True)
                    ],
                }
                for name, task in self.tasks.items()
            },
        }

    @property
    def digest(self) -> str:
        """Two streams with one digest are the same stream: a position means the same in both."""
        return hashlib.sha256(json.dumps(self.definition, sort_keys=True).encode()).hexdigest()

    def batches(self, start: int = 0, stop: int | None = None) -> Batches:
        """For each of the steps [start, stop) this rank's `accumulation` micro-batches, one by one.

        In (rank, micro-step) order they are contiguous slices of the global batch. To be used in a `with`,
        which ends the threads.
        """
        steps = count(start) if stop is None else range(start, stop)
        parts = (part for step in steps for part in self.parts(step))
        return Batches(self.tasks, parts, self.config.threads, self.config.prefetch, self.stats)

    def parts(self, step: int) -> list[Part]:
        """The positions of this rank's micro-batches."""
        slices = self.world_size * self.accumulation
        parts = []
        for micro in range(self.accumulation):
            number = self.rank * self.accumulation + micro
            positions: dict[TaskName, range] = {}
            for name, task in self.tasks.items():
                size = task.batch // slices
                first = step * task.batch + number * size
                positions[name] = range(first, first + size)
            parts.append(Part(step, positions))
        return parts

    def ids(self, step: int) -> Ids:
        """The whole global batch, all ranks', without decoding: as the order asks for it."""
        return {
            name: self._ids(task, range(step * task.batch, (step + 1) * task.batch))
            for name, task in self.tasks.items()
        }

    def rank_ids(self, step: int) -> list[Ids]:
        """The same for each of this rank's micro-batches."""
        return [
            {name: self._ids(task, part.positions[name]) for name, task in self.tasks.items()}
            for part in self.parts(step)
        ]

    @property
    def data_wait_s(self) -> float:
        """Seconds that the consumer of batches has waited so far."""
        return self.stats.wait_s

    @staticmethod
    def _ids(task: TaskStream, positions: range) -> list[tuple[int, str]]:
        return [(position, task.key(position)) for position in positions]


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


def _order(config: StreamConfig, name: TaskName, readers: list[SampleReader]) -> Order:
    scenes = name == "detection"
    return Order(
        seed=config.seed,
        batch=config.scene_batch if scenes else config.canvas_batch,
        sources=[Source(reader.name, reader.slots, reader.runs) for reader in readers],
        weights=[entry.weight for entry in (config.scenes if scenes else config.canvases)],
        lanes=_lanes(config, name),
        group=1 if scenes else config.canvas_group,
        block=config.block,
    )


def _lanes(config: StreamConfig, name: TaskName) -> int:
    scenes = name == "detection"
    turns = config.scene_batch if scenes else config.canvas_batch // config.canvas_group
    lanes = config.lanes or default_lanes(turns)
    if turns % lanes:
        raise UserError(
            f"lanes {lanes} does not divide the {turns} turns of a batch of {name}: "
            "choose a divisor, or leave lanes out."
        )
    return lanes


def _shards_near(config: StreamConfig, name: TaskName, world_size: int) -> int:
    """Shards of a dataset that a rank reads from at once: a block in each of its lanes.

    One lane more than its share, for lanes that are cut by ranks and while one block gives way to the next.
    """
    return (math.ceil(_lanes(config, name) / world_size) + 1) * config.block


def _open_readers(
    entries: tuple[MixtureEntry, ...], key: str, tasks: tuple[Task, ...], open_shards: int
) -> list[SampleReader]:
    if not entries:
        raise UserError(f"the stream's batch wants {key}, but `{key}` names no shard set.")
    readers: list[SampleReader] = []
    for entry in entries:
        reader = SampleReader(ShardSet(entry.shards), open_shards)
        if reader.manifest.task not in tasks:
            raise UserError(
                f"`{key}` names {entry.shards}, which was made for {reader.manifest.task}; "
                f"it takes shard sets for {' or '.join(tasks)}."
            )
        if sum(reader.slots) == 0:
            raise UserError(f"`{key}` names {entry.shards}, which holds no sample.")
        if reader.name in [other.name for other in readers]:
            raise UserError(f"`{key}` names {reader.name} twice: give one entry a larger weight.")
        readers.append(reader)
    return readers
