"""Figures of the stream: ratios within one run, on generated releases, through the sharding job.

The work is the same for all: decode once, two augmented views, boxes placed, a batch of them.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch

from launch.benchmarks import loaders, stream_memory
from launch.benchmarks.measure import (
    Cost,
    Row,
    Spread,
    Work,
    in_turns,
    measured,
    one_core,
    per_cpu_second,
    per_second,
    ratio,
    spread,
)
from launch.benchmarks.stream_sets import Sets, write_sets
from pipeline.rendering.renderer import Renderer, view_draws
from pipeline.samples import Sample
from pipeline.settings import StreamConfig
from pipeline.stream import Stream
from pipeline.task import TaskStream

SHARES = {"exact": 0.30, "fast": 0.45}
MOST_OVERHEAD = 20.0
LEAST_OVER_PEERS, LEAST_OVER_TORCHVISION = 1.3, 8.0
STRONG = {"jitter": 1.0, "hue": 0.1, "blur": 1.0}
"""Augmentation as contrastive recipes have it, for information."""


@dataclass(frozen=True)
class Scale:
    scenes: int = 640
    """More than a turn takes: no epoch of a loader ends in it."""
    crops: int = 960
    shard_bytes: int = 8 << 20
    batch: int = 16
    looped: int = 96
    """Images a turn of what runs on one core."""
    batches: int = 20
    """Of the stream against the bare work, and of loaders against each other, a turn."""
    skipped: int = 10
    """First batches of a loader in a turn: those that its workers had in store, and more."""
    slow_skipped: int = 4
    slow_batches: int = 4
    """The same of torchvision's transforms, which take many times as long."""
    weighed_steps: int = 12
    """While memory is looked at."""
    rounds: int = 5


FULL = Scale()
QUICK = Scale(
    scenes=160, crops=160, looped=32, batches=5, skipped=5, slow_skipped=1, slow_batches=1, rounds=2
)
TOY = Scale(
    scenes=12,
    crops=8,
    shard_bytes=1 << 20,
    batch=2,
    looped=4,
    batches=2,
    skipped=1,
    slow_skipped=0,
    slow_batches=1,
    weighed_steps=1,
    rounds=1,
)
"""To try the command itself."""


def run(folder: Path, scale: Scale) -> list[Row]:
    """Ours run in threads: torch's and OpenCV's own would stand in each other's way."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sets = write_sets(folder, scale.scenes, scale.crops, scale.shard_bytes)
    return [
        *share_rows("scenes", _config(sets, "scenes", scale), scale),
        *share_rows("canvases", _config(sets, "canvases", scale), scale),
        *overhead_rows(sets, scale),
        *loader_rows(sets, scale),
        *stream_memory.memory_rows(sets.scenes, sets.canvases, scale.weighed_steps),
    ]


def share_rows(what: str, config: StreamConfig, scale: Scale) -> list[Row]:
    """The work alone against the decoder alone, on one core."""
    samples = _samples(config, scale.looped)
    works: dict[str, Work] = {"decode": partial(_decode_all, samples)}
    for mode in ("exact", "fast"):
        works[mode] = partial(_render_all, _task(_in_mode(config, mode)).renderer, samples)
    with one_core():
        costs = in_turns(works, scale.rounds)
    rates = {name: per_cpu_second(each) for name, each in costs.items()}
    return [
        Row(f"{what}, simplejpeg alone", spread(rates["decode"]), "a CPU second"),
        *(
            Row(
                f"{what}, two views `{mode}`, over simplejpeg alone",
                ratio(rates[mode], rates["decode"]),
                "x",
                share if what == "scenes" else None,
                remark=f"{spread(rates[mode]).median:.0f} a CPU second",
            )
            for mode, share in SHARES.items()
        ),
    ]


def overhead_rows(sets: Sets, scale: Scale) -> list[Row]:
    """What order, reading, threads and batches take besides the work."""
    rows = []
    for what in ("scenes", "canvases"):
        for mode in SHARES:
            config = _in_mode(_config(sets, what, scale), mode)
            count = scale.batches * scale.batch
            samples = _samples(config, min(count, scale.looped))
            works: dict[str, Work] = {
                "bare": partial(_render_all, _task(config).renderer, samples),
                "stream": StreamTurns(config, scale.batches).run,
            }
            costs = in_turns(works, scale.rounds)
            above = ratio(per_cpu_second(costs["bare"]), per_cpu_second(costs["stream"]))
            rows.append(
                Row(
                    f"{what} `{mode}`: the stream's CPU above the bare work's",
                    Spread(*(100 * (figure - 1) for figure in above)),
                    "%",
                    MOST_OVERHEAD if what == "scenes" else None,
                    "lower",
                )
            )
    return rows


class StreamTurns:
    """Each turn goes on in the stream where the last one ended."""

    def __init__(self, config: StreamConfig, batches: int) -> None:
        self._stream, self._batches, self._next = Stream.open(config), batches, 0

    def run(self) -> int:
        first, self._next = self._next, self._next + self._batches
        with self._stream.batches(first, self._next) as batches:
            return sum(loaders.size(batch) for batch in batches)


class Turn(NamedTuple):
    cost: Cost
    """Of the steady state."""
    start_s: float
    """To the first batch."""


@dataclass(frozen=True)
class Loader:
    batches: loaders.Open
    """Opens it and yields the sizes of its batches, without an end."""
    skipped: int
    counted: int


def loader_rows(sets: Sets, scale: Scale) -> list[Row]:
    """Loaders with two threads or two worker processes each, in the mode `fast`."""
    usual = _in_mode(_config(sets, "scenes", scale), "fast")
    strong = usual.model_copy(update={"views": usual.views.model_copy(update=STRONG)})
    peers = loaders.peers(sets, loaders.TwoViews(_task(usual).renderer), scale.batch)
    quick: dict[str, loaders.Open] = {
        "ours": partial(loaders.our_batches, usual),
        "ours, strong": partial(loaders.our_batches, strong),
        **peers,
    }
    works = {name: Loader(each, scale.skipped, scale.batches) for name, each in quick.items()}
    for name, config in (("torchvision", usual), ("torchvision, strong", strong)):
        views = loaders.TorchvisionViews(config.scene_size, config.views)
        slow = partial(loaders.webdataset_batches, sets.tars, views, scale.batch)
        works[name] = Loader(slow, scale.slow_skipped, scale.slow_batches)
    turns = _loader_turns(works, scale.rounds)
    costs = {name: [turn.cost for turn in each] for name, each in turns.items()}
    wall = {name: per_second(each) for name, each in costs.items()}
    cpu = {name: per_cpu_second(each) for name, each in costs.items()}
    best = max(peers, key=lambda name: spread(wall[name]).median)
    frugal = max(peers, key=lambda name: spread(cpu[name]).median)
    return [
        *_rate_rows(turns),
        Row(
            f"ours over the best of {', '.join(peers)}, wall",
            ratio(wall["ours"], wall[best]),
            "x",
            LEAST_OVER_PEERS,
            remark=f"the best: {best}",
        ),
        Row(
            f"ours over the best of {', '.join(peers)}, CPU",
            ratio(cpu["ours"], cpu[frugal]),
            "x",
            remark=f"the best: {frugal}",
        ),
        Row(
            "ours over torchvision v2 in webdataset, wall",
            ratio(wall["ours"], wall["torchvision"]),
            "x",
            LEAST_OVER_TORCHVISION,
        ),
        Row(
            "ours over torchvision v2 in webdataset, CPU",
            ratio(cpu["ours"], cpu["torchvision"]),
            "x",
        ),
        Row(
            "ours over it with hue, colour and blur always on, CPU",
            ratio(cpu["ours, strong"], cpu["torchvision, strong"]),
            "x",
        ),
    ]


def _rate_rows(turns: dict[str, list[Turn]]) -> list[Row]:
    rows = []
    for name, each in turns.items():
        costs = [turn.cost for turn in each]
        cpu = spread([1000 * cost.cpu_s / cost.images for cost in costs])
        cores = spread([cost.cpu_s / cost.wall_s for cost in costs])
        start = spread([turn.start_s for turn in each])
        rows += [
            Row(f"{name}, wall", spread(per_second(costs)), "images/s"),
            Row(f"{name}, CPU an image", cpu, "ms", better="lower"),
            Row(f"{name}, cores that it got", cores),
            Row(f"{name}, to the first batch", start, "s", better="lower"),
        ]
    return rows


def _loader_turns(works: dict[str, Loader], rounds: int) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {name: [] for name in works}
    for turn in range(rounds):
        for name in list(works) if turn % 2 else reversed(works):
            turns[name].append(_steady(works[name]))
    return turns


def _steady(loader: Loader) -> Turn:
    with closing(loader.batches()) as batches:
        start = measured(lambda: next(batches))
        for _ in range(loader.skipped):
            next(batches)
        return Turn(measured(lambda: sum(islice(batches, loader.counted))), start.wall_s)


def _config(sets: Sets, what: str, scale: Scale) -> StreamConfig:
    url = {"scenes": sets.scenes, "canvases": sets.canvases}[what]
    settings: dict[str, Any] = {
        what: [{"shards": url, "weight": 1}],
        {"scenes": "scene_batch", "canvases": "canvas_batch"}[what]: scale.batch,
        "threads": 2,
    }
    return StreamConfig.model_validate(settings)


def _in_mode(config: StreamConfig, mode: str) -> StreamConfig:
    return config.model_copy(update={"views": config.views.model_copy(update={"mode": mode})})


def _task(config: StreamConfig) -> TaskStream:
    """Of a stream that has one."""
    (task,) = Stream.open(config).tasks.values()
    return task


def _samples(config: StreamConfig, count: int) -> list[Sample]:
    """The first of the stream, as they are stored."""
    task = _task(config)
    places = map(task.order.at, range(count))
    return [task.readers[0].read(0, place.shard, place.slot) for place in places]


def _decode_all(samples: Sequence[Sample]) -> int:
    for sample in samples:
        simplejpeg.decode_jpeg(sample.image, "RGB")
    return len(samples)


def _render_all(renderer: Renderer, samples: Sequence[Sample]) -> int:
    """Into the same two views again and again."""
    first, second = np.empty((2, *renderer.size, 3), np.uint8)
    for sample in samples:
        draws = view_draws(0, sample.annotation.key, 0)
        renderer.render((sample, sample), draws, (first, second))
    return len(samples)
