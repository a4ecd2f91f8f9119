"""Which sample goes into which shard: a pure function of the listing and the settings.

Nothing is opened to make a plan, so it is the same on every machine and on every re-run, and its hash
stands for everything that decides the bytes of the shards.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from pipeline.annotation import Task
from pipeline.config import Config
from pipeline.errors import UserError
from sharding.canvas import CanvasConfig
from sharding.datasets.base import Adapter, Listing, SourceSample
from sharding.image import Check

PLAN_VERSION = 2
"""Raised whenever the same source and settings give other bytes than before."""

SUBSET_SALT = "hybrid-person-search subset v1"
"""Published, so that anybody can name the same N samples."""


class PlanConfig(Config):
    seed: int = 0
    """Of the order of samples and of the places of crops."""
    check: Check = "full"
    """`full` decodes every image once, so that readers may trust it; `header` looks at headers only."""
    subset: int | None = Field(default=None, gt=0)
    """Take the N samples with the smallest sha256(salt + key); a larger N only adds to them."""
    keep_metadata: bool = False
    """Keep EXIF, XMP, IPTC and text of scenes, so that their bytes equal the source's."""
    shard_bytes: int = Field(default=256 << 20, gt=0)
    """Target size of a shard of scenes."""
    shard_crops: int = Field(default=2000, gt=0)
    """Target number of canvases in a shard."""
    group: int = Field(default=1, gt=0)
    """Crops of one identity that stay neighbours, so that a stream meets identities in pairs or more."""
    canvas: CanvasConfig = CanvasConfig()
    """How re-ID crops are put on canvases."""
    max_missing: float = Field(default=0.01, ge=0, le=1)
    """Largest share of samples that the source may name and lack; with more, nothing is written."""


@dataclass(frozen=True, slots=True)
class PlannedSample:
    source: SourceSample
    run: int
    """Number of its run in the shard; neighbours of one run hold one identity."""
    fault: str | None = None
    """Why it cannot be read, if the listing knew: planned all the same, so that it is accounted for."""


@dataclass(frozen=True)
class ShardPlan:
    name: str
    samples: tuple[PlannedSample, ...]


@dataclass(frozen=True)
class Plan:
    dataset: str
    split: str
    task: Task
    config: PlanConfig
    shards: tuple[ShardPlan, ...]
    excluded: dict[str, int]
    source_samples: int
    """Planned and excluded ones together, as the adapter counted them."""
    hash: str

    @property
    def samples(self) -> int:
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def variants(self) -> int:
        return self.config.canvas.variants if self.task == "reid" else 1

    @property
    def source_bytes(self) -> int:
        return sum(p.source.size_bytes for shard in self.shards for p in shard.samples)

    def description(self) -> dict[str, Any]:
        """What to compare by name when the hashes of two plans differ."""
        return {
            "version": PLAN_VERSION,
            "dataset": self.dataset,
            "split": self.split,
            "samples": self.samples,
            "shards": len(self.shards),
            "excluded": self.excluded,
            "settings": deciding_settings(self.config, self.task),
        }


def make_plan(adapter: Adapter, split: str, listing: Listing, config: PlanConfig) -> Plan:
    """Raises UserError if the settings do not fit the dataset or nothing is left to write."""
    if config.group > 1 and adapter.task != "reid":
        raise UserError(
            f"group: {config.group} needs re-ID crops, and {adapter.name} holds scenes."
        )
    faulty = [SourceSample(faulty.key, "", faulty.origin, 0) for faulty in listing.faulty]
    candidates = _unique([*listing.samples, *faulty])
    chosen = candidates if config.subset is None else _subset(candidates, config.subset)
    excluded = {
        **listing.excluded,
        "repeated key": len(listing.samples) + len(faulty) - len(candidates),
        f"outside of the subset of {config.subset}": len(candidates) - len(chosen),
    }
    reasons = {faulty.key: faulty.reason for faulty in listing.faulty}
    if all(sample.key in reasons for sample in chosen):
        raise UserError(f"{adapter.name} {split}: the source holds no sample to write.")
    runs = _ordered_runs(chosen, config)
    shards = tuple(
        ShardPlan(f"{number:06d}", tuple(_number_runs(part, reasons)))
        for number, part in enumerate(_split(runs, adapter.task, config))
    )
    counted = {rule: number for rule, number in excluded.items() if number}
    identity = [PLAN_VERSION, adapter.name, split, deciding_settings(config, adapter.task)]
    plan_hash = _hash(identity, shards)
    return Plan(
        adapter.name, split, adapter.task, config, shards, counted, listing.total, plan_hash
    )


def deciding_settings(config: PlanConfig, task: Task) -> dict[str, Any]:
    """The settings that decide the bytes of shards of this task."""
    of_crops, of_scenes = {"canvas", "group", "shard_crops"}, {"keep_metadata", "shard_bytes"}
    others = of_scenes if task == "reid" else of_crops
    return config.model_dump(mode="json", exclude={"max_missing", *others})


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """`settings.seed: 0 -> 1` for each leaf that two descriptions do not share."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}: {before} -> {after}"


def _unique(samples: list[SourceSample]) -> list[SourceSample]:
    """The first sample of each key."""
    by_key: dict[str, SourceSample] = {}
    for sample in samples:
        by_key.setdefault(sample.key, sample)
    return list(by_key.values())


def _subset(samples: list[SourceSample], size: int) -> list[SourceSample]:
    return heapq.nsmallest(size, samples, key=lambda sample: _digest(SUBSET_SALT, sample.key))


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(" ".join(map(str, parts)).encode()).digest()


def _ordered_runs(samples: list[SourceSample], config: PlanConfig) -> list[list[SourceSample]]:
    """Runs of at most `group` crops of one identity, in keyed order; without identity, runs of one."""
    ordered = sorted(samples, key=lambda sample: _digest("order", config.seed, sample.key))
    if config.group == 1:
        return [[sample] for sample in ordered]
    open_runs: dict[str, list[SourceSample]] = {}
    runs: list[list[SourceSample]] = []
    for sample in ordered:
        identity = sample.persons[0].identity if sample.persons else None
        run = open_runs.get(identity, []) if identity is not None else []
        if not run:
            runs.append(run)
        run.append(sample)
        if identity is not None:
            open_runs[identity] = run if len(run) < config.group else []
    return sorted(runs, key=lambda run: _digest("runs", config.seed, run[0].key))


def _split(
    runs: list[list[SourceSample]], task: Task, config: PlanConfig
) -> Iterator[list[list[SourceSample]]]:
    """Cuts the runs into shards of about equal weight (bytes of scenes, number of crops)."""
    weights = [len(run) if task == "reid" else sum(s.size_bytes for s in run) for run in runs]
    total = max(1, sum(weights))
    shards = -(-total // (config.shard_crops if task == "reid" else config.shard_bytes))
    part: list[list[SourceSample]] = []
    before, number = 0, 0
    for run, weight in zip(runs, weights):
        if part and before * shards // total > number:
            number = before * shards // total
            yield part
            part = []
        part.append(run)
        before += weight
    yield part


def _number_runs(
    runs: list[list[SourceSample]], reasons: Mapping[str, str]
) -> Iterator[PlannedSample]:
    for number, run in enumerate(runs):
        for sample in run:
            yield PlannedSample(sample, number, reasons.get(sample.key))


def _hash(identity: Any, shards: Iterable[ShardPlan]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for shard in shards:
        digest.update(f"\n{shard.name}".encode())
        for planned in shard.samples:
            digest.update(f"\n{planned.run} {planned.fault} ".encode())
            digest.update(_sample_line(planned.source))
    return digest.hexdigest()


def _sample_line(sample: SourceSample) -> bytes:
    """All that the source says about a sample but where exactly it lies (`locator`)."""
    persons = [person.model_dump_json(exclude_defaults=True) for person in sample.persons]
    claims = [sample.expected_size, sample.tags, sample.extra]
    line = [sample.key, sample.origin, sample.size_bytes, persons, claims]
    return json.dumps(line, sort_keys=True).encode()
