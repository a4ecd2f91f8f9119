"""From the settings of a stream to its two halves: shard sets opened, orders made, identities numbered."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from pipeline.annotation import Task
from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.mixture import SHORTEST_CYCLE
from pipeline.order import Order, Segment, Source, default_lanes
from pipeline.rendering.renderer import TaskName
from pipeline.samples import SampleReader
from pipeline.selection import Selection
from pipeline.settings import MIXTURE_KEYS, MixtureEntry, StreamConfig
from pipeline.shards import ShardSet
from pipeline.stores.node_cache import NodeCache
from pipeline.task import TaskStream

MADE_FOR: dict[TaskName, tuple[Task, ...]] = {
    "reid": ("reid",),
    "detection": ("detection", "search"),
}
"""What a task's shard sets may have been made for; in the order in which identities get their rows."""


class Opened(NamedTuple):
    tasks: dict[TaskName, TaskStream]
    identities: Identities


def open_tasks(
    config: StreamConfig, world_size: int, identities: Identities | None = None
) -> Opened:
    """Reads manifests and selections alone. `identities` keep their rows, others get new ones behind them.

    Raises UserError on a shard set that is missing or was made for other tasks.
    """
    cache = NodeCache(config.cache) if config.cache else None
    opened = {
        name: _open_task(config, name, world_size, cache)
        for name in MADE_FOR
        if config.task(name).batch
    }
    numbered = identities or Identities()
    for first_step in sorted({step for one in opened.values() for step in one.new_readers}):
        for one in opened.values():
            for reader in one.new_readers.get(first_step, ()):
                numbered = numbered.extended(reader.manifest.dataset, reader.manifest.identities)
    # The halves of a stream are listed as the settings list them.
    tasks = {
        name: _task_stream(config, name, opened[name], numbered)
        for name in MIXTURE_KEYS
        if name in opened
    }
    return Opened(tasks, numbered)


@dataclass
class _OpenedTask:
    """The readers of all segments of a task, in the order in which segments name them first."""

    readers: list[SampleReader] = field(default_factory=list)
    new_readers: dict[int, list[SampleReader]] = field(default_factory=dict)
    """By the first step of the segment that names them first."""
    segments: list[Segment] = field(default_factory=list)


def _open_task(
    config: StreamConfig, name: TaskName, world_size: int, cache: NodeCache | None
) -> _OpenedTask:
    opened, known = _OpenedTask(), dict[tuple[str, str | None], int]()
    key = MIXTURE_KEYS[name]
    # What comes next is opened ahead into a cache.
    near = _shards_near(config, name, world_size) * (2 if cache else 1)
    open_set = partial(SampleReader, open_shards=near, cache=cache, check_hashes=config.check_tars)
    for first_step, entries in config.mixtures(name):
        if not entries:
            raise UserError(f"the stream's batch wants {key}, but `{key}` names no shard set.")
        weights: dict[int, float] = {}
        for entry in entries:
            place = (entry.shards.rstrip("/"), entry.selection)
            if place not in known:
                known[place] = len(opened.readers)
                reader = _open_reader(entry, name, open_set)
                if config.views.two_variants and name == "reid":
                    _check_variants(reader)
                opened.readers.append(reader)
                opened.new_readers.setdefault(first_step, []).append(reader)
            if known[place] in weights:
                raise _named_twice(opened.readers[known[place]], entry.shards, key)
            weights[known[place]] = entry.weight
        _check_weights(weights, opened.readers, key)
        opened.segments.append(Segment(first_step, weights))
    _check_names(opened.readers, key)
    return opened


def _check_weights(weights: dict[int, float], readers: list[SampleReader], key: str) -> None:
    """Raises UserError on a share so small that the cycle of the mixture would make it larger."""
    total = sum(weights.values())
    source, least = min(weights.items(), key=lambda item: item[1])
    if least / total * SHORTEST_CYCLE < 0.5:
        raise UserError(
            f"`{key}` gives {readers[source].source_name} a weight of {least:g} out of {total:g}. The "
            f"smallest share that the order can keep is 1 in {2 * SHORTEST_CYCLE:,}: leave it out, or give "
            "it more."
        )


def _check_names(readers: list[SampleReader], key: str) -> None:
    """Raises UserError on two sets, or one at two URLs, that the order cannot tell apart."""
    seen: dict[str, str] = {}
    for reader in readers:
        if reader.source_name in seen:
            raise _named_twice(reader, seen[reader.source_name], key)
        seen[reader.source_name] = reader.shard_set.url


def _named_twice(reader: SampleReader, other: str, key: str) -> UserError:
    return UserError(
        f"`{key}` names {reader.source_name} twice, at {other} and at {reader.shard_set.url}. If they are "
        "one set, give one entry a larger weight; if not, only one can be streamed: sets are told apart by "
        "their dataset and split."
    )


def _task_stream(
    config: StreamConfig, name: TaskName, opened: _OpenedTask, identities: Identities
) -> TaskStream:
    task = config.task(name)
    order = Order(
        seed=config.seed,
        batch=task.batch,
        sources=[
            Source(reader.source_name, reader.slots, reader.runs) for reader in opened.readers
        ],
        segments=opened.segments,
        lanes=_lanes(config, name),
        group=task.group,
        block=config.block,
    )
    return TaskStream(name, order, opened.readers, task.size, config.views, identities)


def _open_reader(
    entry: MixtureEntry, name: TaskName, open_set: Callable[..., SampleReader]
) -> SampleReader:
    key = MIXTURE_KEYS[name]
    selection = Selection.read(entry.selection) if entry.selection else None
    reader = open_set(ShardSet(entry.shards), selection=selection)
    if reader.manifest.task not in MADE_FOR[name]:
        raise UserError(
            f"`{key}` names {entry.shards}, which was made for {reader.manifest.task}; "
            f"it takes shard sets for {' or '.join(MADE_FOR[name])}."
        )
    if sum(reader.slots) == 0:
        which = f", of which {entry.selection} selects none" if selection else ""
        raise UserError(f"`{key}` names {entry.shards}, which holds no sample{which}.")
    return reader


def _check_variants(reader: SampleReader) -> None:
    """Raises UserError if its canvases have one placement alone."""
    if reader.manifest.variants < 2:
        raise UserError(
            f"views.two_variants wants two placements of every crop, and {reader.shard_set.url}, named by "
            "`canvases`, has one. Write it anew with `python -m sharding write ... --set "
            "canvas.variants=2` or more, or leave views.two_variants out."
        )


def _lanes(config: StreamConfig, name: TaskName) -> int:
    task = config.task(name)
    turns = task.batch // task.group
    lanes = config.lanes or default_lanes(turns)
    if turns % lanes:
        raise UserError(
            f"lanes {lanes} does not divide the {turns} turns of a batch of {name}: "
            "choose a divisor, or leave lanes out."
        )
    return lanes


def _shards_near(config: StreamConfig, name: TaskName, world_size: int) -> int:
    """Tars of a dataset that a rank reads from at once: a block in each of its lanes.

    One lane more than its share, for lanes that are cut by ranks and while one block gives way to the next.
    """
    variants = 2 if config.views.two_variants and name == "reid" else 1
    return (math.ceil(_lanes(config, name) / world_size) + 1) * config.block * variants
