"""Figures of the sharding job: ratios within one run, on generated releases, through the real adapters."""

import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

from launch.benchmarks import peers
from launch.benchmarks.bench import Bench, Scale
from launch.benchmarks.measure import (
    Cost,
    Row,
    Work,
    in_turns,
    one_core,
    per_cpu_second,
    per_second,
    ratio,
    spread,
)
from launch.benchmarks.memory import memory_rows
from sharding.cluster import Cluster, Failure, Task, ray_session
from sharding.convert import convert, read_sample
from sharding.image import Fault
from sharding.prepare import PreparedSet
from sharding.writer import ShardJob, ShardResult, TooLarge, write_shard

RAY_ROUNDS = 2
"""In each session."""
CHECKED = 3
"""Shards that are written with a full check: it takes five times as long."""


def run(folder: Path, scale: Scale) -> list[Row]:
    bench = Bench(folder, scale)
    with one_core():
        rows = [*scene_rows(bench), *canvas_rows(bench)]
    return [*rows, *ray_rows(bench)]


def scene_rows(bench: Bench) -> list[Row]:
    """Passing a shard of scenes through, on one core."""
    header, full = (next(bench.scenes(check).jobs()) for check in ("header", "full"))
    scenes = _scenes(bench, [header])
    works: dict[str, Work] = {
        "header": partial(_in_a_loop, [header]),
        "full": partial(_in_a_loop, [full]),
        "tar": partial(peers.write_tar, scenes, bench.out),
        "hashed tar": partial(peers.write_hashed_tar, scenes, bench.out),
        "decode": partial(peers.decode_all, scenes),
    }
    costs = in_turns(works, bench.scale.rounds, bench.clear)
    rates = {name: per_cpu_second(each) for name, each in costs.items()}
    both = [1 / (1 / decode + 1 / header) for decode, header in _pairs(rates, "decode", "header")]
    hashing = [1 / hashed - 1 / plain for hashed, plain in _pairs(rates, "hashed tar", "tar")]
    unhashed = [1 / (1 / rate - time) for rate, time in zip(rates["header"], hashing, strict=True)]
    return [
        Row("scenes, `--check header`", spread(rates["header"]), "a CPU second"),
        Row("scenes, `--check full`", spread(rates["full"]), "a CPU second"),
        Row("header over webdataset's TarWriter", ratio(rates["header"], rates["tar"]), "x", 1.4),
        Row(
            "header over TarWriter with both sha256",
            ratio(rates["header"], rates["hashed tar"]),
            "x",
        ),
        Row("header less both sha256, over TarWriter", ratio(unhashed, rates["tar"]), "x"),
        Row(
            "full over bare decoding",
            ratio(rates["full"], rates["decode"]),
            "x",
            0.85,
            remark="it decodes to 1/8 of the size, which reads every coded bit",
        ),
        Row(
            "header and then a decode in full, over bare decoding",
            ratio(both, rates["decode"]),
            "x",
        ),
    ]


def canvas_rows(bench: Bench) -> list[Row]:
    """Making a shard of canvases, on one core."""
    prepared = bench.crops()
    job, config = next(prepared.jobs()), prepared.plan.config
    crops = [
        peers.place(sample.key, bench.path("crops", sample.locator), config.canvas, config.seed)
        for sample in (planned.source for planned in job.shard.samples)
    ]
    works: dict[str, Work] = {
        "job": partial(_in_a_loop, [job]),
        "floor": peers.CodingFloor(crops, config.canvas).run,
        "paste": partial(peers.paste_by_pillow, crops, config.canvas),
        "expand": partial(peers.expand_by_pillow, crops, config.canvas),
    }
    costs = in_turns(works, bench.scale.rounds, bench.clear)
    rates = {name: per_cpu_second(each) for name, each in costs.items()}
    return [
        Row("canvases", spread(rates["job"]), "a CPU second"),
        Row(
            "canvases over Pillow",
            ratio(rates["job"], rates["paste"]),
            "x",
            3.5,
            remark="which resizes the crop alone and writes nothing",
        ),
        Row(
            "canvases over Pillow, the paper's steps",
            ratio(rates["job"], rates["expand"]),
            "x",
            remark="which resizes the whole canvas and writes nothing",
        ),
        Row(
            "canvases over their decoding and encoding",
            ratio(rates["job"], rates["floor"]),
            "x",
            0.75,
        ),
    ]


def ray_rows(bench: Bench) -> list[Row]:
    """Ray against a loop, two workers against one, Ray Data, and memory. Ray's start is not counted."""
    scenes, checked, canvases = bench.scenes("header"), bench.scenes("full"), bench.crops()
    costs: dict[str, list[Cost]] = defaultdict(list)
    memory: list[Row] = []
    for _ in range(bench.scale.sessions):
        with ray_session(1) as cluster:
            one: dict[str, Work] = {
                "header": lambda: _in_a_loop(scenes.jobs()),
                "header 1": lambda: _on_ray(cluster, scenes.jobs()),
                "full": lambda: _in_a_loop(islice(checked.jobs(), CHECKED)),
                "full 1": lambda: _on_ray(cluster, islice(checked.jobs(), CHECKED)),
                "canvases": lambda: _in_a_loop(canvases.jobs()),
                "canvases 1": lambda: _on_ray(cluster, canvases.jobs()),
            }
            _add(costs, in_turns(one, RAY_ROUNDS, bench.clear))
            memory = memory or memory_rows(bench, cluster)
        with ray_session(2) as cluster:
            two: dict[str, Work] = {
                "canvases 2": lambda: _on_ray(cluster, canvases.jobs()),
                "header 2": lambda: _on_ray(cluster, scenes.jobs()),
                **_ray_data(bench, scenes),
            }
            _add(costs, in_turns(two, RAY_ROUNDS, bench.clear))
    return [*_compared(costs), *memory]


def _compared(costs: Mapping[str, list[Cost]]) -> list[Row]:
    cpu = {name: per_cpu_second(each) for name, each in costs.items()}
    wall = {name: per_second(each) for name, each in costs.items()}
    clocks = (("CPU", cpu), ("wall", wall))
    rows = [
        Row(
            "canvases, 2 Ray workers over 1, wall",
            ratio(wall["canvases 2"], wall["canvases 1"]),
            "x",
            1.85,
        )
    ]
    limits = {"canvases": 1.15, "full": 1.15, "header": None}
    for what, limit in limits.items():
        for clock, rates in clocks:
            figure = ratio(rates[what], rates[f"{what} 1"])
            rows.append(Row(f"Ray over a loop, {what}, {clock}", figure, "x", limit, "lower"))
    if "Ray Data" in costs:
        for clock, rates in clocks:
            figure = ratio(rates["header 2"], rates["Ray Data"])
            rows.append(Row(f"header over Ray Data's write_webdataset, {clock}", figure, "x", 2))
    return rows


def _in_a_loop(jobs: Iterable[ShardJob]) -> int:
    return sum(_images(job, write_shard(job)) for job in jobs)


def _on_ray(cluster: Cluster, jobs: Iterable[ShardJob]) -> int:
    return sum(_images(*done) for done in cluster.run(write_shard, map(Task, jobs)))


def _images(job: ShardJob, result: ShardResult | TooLarge | Failure) -> int:
    """Written, in all variants. Raises AssertionError unless that is all of them."""
    assert isinstance(result, ShardResult) and not result.quarantined, result
    return result.ok * job.conversion.variants


def _scenes(bench: Bench, jobs: Iterable[ShardJob]) -> list[peers.Scene]:
    scenes = []
    for job in jobs:
        for planned in job.shard.samples:
            sample = planned.source
            members, _ = convert(job.conversion, sample, read_sample(job.conversion, planned))
            assert not isinstance(members, Fault)
            record = json.loads(members[0].text)
            scenes.append(peers.Scene(sample.key, bench.path("scenes", sample.locator), record))
    return scenes


def _ray_data(bench: Bench, prepared: PreparedSet) -> dict[str, Work]:
    """None where pandas is not installed."""
    if importlib.util.find_spec("pandas") is None:
        return {}
    from launch.benchmarks.ray_data import write_by_ray_data

    scenes = _scenes(bench, prepared.jobs())
    return {"Ray Data": lambda: write_by_ray_data(scenes, bench.out)}


def _pairs(
    rates: Mapping[str, list[float]], first: str, second: str
) -> Iterator[tuple[float, float]]:
    return zip(rates[first], rates[second], strict=True)


def _add(costs: dict[str, list[Cost]], more: Mapping[str, list[Cost]]) -> None:
    for name, each in more.items():
        costs[name] += each
