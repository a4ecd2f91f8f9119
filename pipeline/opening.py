"""From the settings of a stream to its two halves: shard sets opened, orders made, identities numbered."""

import math
from typing import NamedTuple

from pipeline.annotation import Task
from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.order import Order, Source, default_lanes
from pipeline.render import TaskName
from pipeline.samples import SampleReader
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.shards import ShardSet
from pipeline.task import TaskStream
from pipeline.views import Size


class Opened(NamedTuple):
    tasks: dict[TaskName, TaskStream]
    identities: Identities


def open_tasks(config: StreamConfig, world_size: int) -> Opened:
    """Reads manifests alone. Raises UserError on a shard set that is missing or was made for other tasks."""
    readers: dict[TaskName, list[SampleReader]] = {}
    if config.scene_batch:
        near = _shards_near(config, "detection", world_size)
        readers["detection"] = _open_readers(config.scenes, "scenes", ("detection", "search"), near)
    if config.canvas_batch:
        near = _shards_near(config, "reid", world_size)
        readers["reid"] = _open_readers(config.canvases, "canvases", ("reid",), near)
    identities = Identities()
    for reader in [*readers.get("reid", ()), *readers.get("detection", ())]:
        identities = identities.extended(reader.manifest.dataset, reader.manifest.identities)
    tasks = {
        name: TaskStream(
            name,
            _order(config, name, task_readers),
            task_readers,
            Size(*(config.scene_size if name == "detection" else config.canvas_size)),
            config.views,
            identities,
        )
        for name, task_readers in readers.items()
    }
    return Opened(tasks, identities)


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
