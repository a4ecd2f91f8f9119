"""The stream: deterministic, elastic batches of scenes and canvases out of shard sets.

What comes at a position is a pure function of the stream's definition, so the state to resume from
is a number, whatever the world size, accumulation and threads of either run.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import cv2

from pipeline.ahead import fetch_ahead
from pipeline.batch import Batch
from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.ledger import Ledger
from pipeline.loading import Batches, Part
from pipeline.opening import Opened, open_tasks
from pipeline.rendering.renderer import TaskName
from pipeline.settings import StreamConfig, check_sizes
from pipeline.stats import StreamStats
from pipeline.stores.local import allow_open_files
from pipeline.task import TaskStream

ORDER_VERSION = 2
"""Raised with every change of the code that moves a sample or a pixel."""

Ids = dict[str, list[tuple[int, str]]]
"""(position, key) of a global batch, by task."""


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
        self.tasks = tasks
        readers = [reader for task in tasks.values() for reader in task.readers]
        self.stats = StreamStats(tuple(dict.fromkeys(r.name for r in readers)), ledger)

    @classmethod
    def open(
        cls,
        config: StreamConfig,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        ledger_path: Path | None = None,
        identities: Identities | None = None,
    ) -> "Stream":
        """Reads manifests alone. `identities`: those of the run that is resumed, they keep their rows.

        Raises UserError on a missing shard set and on sizes that do not fit.
        """
        check_sizes(config, world_size * accumulation)
        allow_open_files()
        cv2.setNumThreads(1)  # a thread of ours per sample is parallel enough
        tasks, numbered = open_tasks(config, world_size, identities)
        ledger = Ledger(config.max_bad_share, config.max_bad_run, ledger_path)
        return cls(config, tasks, numbered, ledger, (rank, world_size, accumulation))

    @property
    def domains(self) -> dict[str, tuple[str, ...]]:
        """What `Images.domain` counts, by task; a task that is off has none."""
        names: tuple[TaskName, TaskName] = ("detection", "reid")
        return {n: self.tasks[n].domains if n in self.tasks else () for n in names}

    @property
    def definition(self) -> dict[str, Any]:
        """Everything that decides what comes when, to be stored with a run."""
        return self._definition(None)

    @property
    def digest(self) -> str:
        """Two streams with one digest are the same stream: a position means the same in both.

        But for people who were forgotten between them, and for rows of identities, which a run stores.
        """
        return _digest(self.definition)

    def history_digest(self, step: int) -> str:
        """Of what was streamed before `step`: later segments of the mixture do not count."""
        return _digest(self._definition(step))

    @property
    def manifests(self) -> dict[str, dict[str, Any]]:
        """What is read for `definition`: of a set, any generation will do."""
        readers = [reader for task in self.tasks.values() for reader in task.readers]
        return {
            reader.name: {
                "manifest": reader.shard_set.manifest_sha256,
                "generation": reader.manifest.generation,
            }
            for reader in readers
        }

    def _definition(self, before: int | None) -> dict[str, Any]:
        """Up to a step."""
        return {
            "order_version": ORDER_VERSION,
            "seed": self.config.seed,
            "views": self.config.views.definition,
            "tasks": {name: task.definition(before) for name, task in self.tasks.items()},
        }

    def batches(self, start: int = 0, stop: int | None = None) -> Batches:
        """For each of the steps [start, stop) this rank's `accumulation` micro-batches, one by one.

        In (rank, micro-step) order they are contiguous slices of the global batch. To be used in a `with`,
        which ends the threads.
        """
        steps = count(start) if stop is None else range(start, stop)
        return self._batches(part for step in steps for part in self.parts(step))

    def one(self, task: TaskName, position: int) -> Batch:
        """The sample at a position alone, as its batch has it, whatever this rank's part is."""
        step = position // self.tasks[task].batch
        with self._batches(iter([Part(step, {task: range(position, position + 1)})])) as batches:
            return next(batches)

    def _batches(self, parts: Iterator[Part]) -> Batches:
        if self.config.cache is not None:
            parts = fetch_ahead(parts, self.tasks, self.config.cache)
        sets = self.digest, self.manifests
        reopen = partial(_reopen, self.config, self.world_size, self.identities, sets)
        return Batches(self.tasks, parts, self.config, reopen, self.stats)

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

    @staticmethod
    def _ids(task: TaskStream, positions: range) -> list[tuple[int, str]]:
        return [(position, task.key(position)) for position in positions]


def _reopen(
    config: StreamConfig, world_size: int, identities: Identities, sets: tuple[str, dict[str, Any]]
) -> Opened:
    """For a worker process. Raises UserError if it finds other shard sets than the stream did."""
    stream = Stream.open(config, world_size=world_size, identities=identities)
    if (stream.digest, stream.manifests) != sets:
        raise UserError(
            "a shard set or selection was changed between the opening of the stream and the start of its "
            "worker processes: open the stream again."
        )
    return Opened(stream.tasks, stream.identities)


def _digest(definition: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
