"""Which sample goes into which shard: a pure function of the listing and the settings.

Nothing is opened to make a plan, so it is the same on every machine and on every re-run, and its hash
stands for everything that decides the bytes of the shards. It is arrays of numbers into the listing, so
that millions of samples fit; a shard's samples are made when the shard is looked at.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.annotation import Task
from pipeline.config import Config
from pipeline.errors import UserError
from sharding.canvas import CanvasConfig
from sharding.datasets.base import Adapter, FaultySample, Listing, SourceSample
from sharding.filters import FilterConfig, Rule, make_rules
from sharding.image import Check
from sharding.ordering import Numbers, cut, digest, heads_of, sort_digests, turns

PLAN_VERSION = 3
"""Raised whenever the same source and settings give other bytes than before."""

REPEATED = "repeated key"
"""Rule that leaves out all samples of a key but the first."""

SUBSET_SALT = "hybrid-person-search subset v1"
"""Published, so that anybody can name the same N samples."""


class PlanConfig(Config):
    seed: int = 0
    """Of the order of samples and of the places of crops."""
    check: Check = "full"
    """`full` decodes every image once, so that readers may trust it; `header` looks at headers only."""
    subset: int | None = Field(default=None, gt=0)
    """Take the N samples with the smallest sha256(salt + key); a larger N only adds to them."""
    filters: FilterConfig = FilterConfig()
    """Which samples are taken at all."""
    keep_metadata: bool = False
    """Keep EXIF, XMP, IPTC and text of scenes, so that their bytes equal the source's."""
    recode: str | None = Field(default=None, pattern=r"^jpeg:(100|[5-9]\d)$")
    """`jpeg:95` stores scenes as JPEG of that quality, instead of the source's own coded pixels."""
    max_side: int | None = Field(default=None, ge=64)
    """With `recode`: larger scenes are reduced to this many pixels on their longer side, boxes with them."""
    shard_bytes: int = Field(default=256 << 20, gt=0)
    """Target size of a shard of scenes, in bytes of the source."""
    shard_crops: int = Field(default=2000, gt=0)
    """Target number of canvases in a shard."""
    group: int = Field(default=1, gt=0)
    """Crops of one identity that stay neighbours, so that a stream meets identities in pairs or more."""
    canvas: CanvasConfig = CanvasConfig()
    """How re-ID crops are put on canvases."""
    max_missing: float = Field(default=0.01, ge=0, le=1)
    """Largest share of samples that the source may name and lack; with more, nothing is written."""

    @model_validator(mode="after")
    def _check(self) -> "PlanConfig":
        if self.max_side is not None and self.recode is None:
            raise ValueError("max_side needs recode, such as jpeg:95")
        return self


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


@dataclass(frozen=True, eq=False)
class Shards(Sequence[ShardPlan]):
    """The shards of a plan, each made when it is asked for."""

    listing: Listing
    order: Numbers
    """Samples in their order: a number into the listing's samples, then into its faulty ones."""
    runs: Numbers
    """The run of each, counted over the whole plan."""
    starts: Numbers
    """Where in `order` each shard begins; one more for the end."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> ShardPlan: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardPlan]: ...
    def __getitem__(self, index: int | slice) -> ShardPlan | list[ShardPlan]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        part = slice(self.starts[number], self.starts[number + 1])
        first = self.runs[part.start]
        samples = (
            _planned(self.listing, int(place), int(run - first))
            for place, run in zip(self.order[part], self.runs[part])
        )
        return ShardPlan(self.name(number), tuple(samples))

    def name(self, number: int) -> str:
        return f"{number:06d}"

    def size(self, number: int) -> int:
        """Samples in a shard."""
        return int(self.starts[number + 1] - self.starts[number])


@dataclass(frozen=True, eq=False)
class Plan:
    dataset: str
    split: str
    task: Task
    config: PlanConfig
    shards: Shards
    excluded: dict[str, int]
    source_samples: int
    """Planned and excluded ones together, as the adapter counted them."""
    source_bytes: int
    hash: str

    @property
    def samples(self) -> int:
        return len(self.shards.order)

    @property
    def variants(self) -> int:
        return self.config.canvas.variants if self.task == "reid" else 1

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
    _check_settings(adapter, config)
    chosen, excluded = _choose(listing, config, make_rules(config.filters, adapter.task))
    if not (chosen.order < len(listing.samples)).any():
        rules = "; ".join(f"{rule}: {number:,}" for rule, number in excluded.items())
        left_out = f" ({rules})" if rules else ""
        raise UserError(f"{adapter.name} {split}: the source holds no sample to write{left_out}.")
    order, runs = _put_in_runs(listing, chosen, config)
    weights = np.ones_like(order) if adapter.task == "reid" else chosen.sizes[order]
    target = config.shard_crops if adapter.task == "reid" else config.shard_bytes
    shards = Shards(listing, order, runs, cut(runs, weights, target))
    identity = [PLAN_VERSION, adapter.name, split, deciding_settings(config, adapter.task)]
    return Plan(
        dataset=adapter.name,
        split=split,
        task=adapter.task,
        config=config,
        shards=shards,
        excluded=excluded,
        source_samples=listing.total,
        source_bytes=int(chosen.sizes[order].sum()),
        hash=_hash(identity, shards, chosen.claims),
    )


def deciding_settings(config: PlanConfig, task: Task) -> dict[str, Any]:
    """The settings that decide the bytes of shards of this task."""
    of_crops = {"canvas", "group", "shard_crops"}
    of_scenes = {"keep_metadata", "recode", "max_side", "shard_bytes"}
    others = of_scenes if task == "reid" else of_crops
    settings = config.model_dump(mode="json", exclude={"max_missing", *others})
    return {**settings, "filters": {**settings["filters"], **config.filters.contents()}}


def manifest_settings(config: PlanConfig, task: Task) -> dict[str, Any]:
    """The same with the version, as a manifest keeps them."""
    return {"plan_version": PLAN_VERSION, **deciding_settings(config, task)}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """`settings.seed: 0 -> 1` for each leaf that two descriptions do not share."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}: {before} -> {after}"


def _check_settings(adapter: Adapter, config: PlanConfig) -> None:
    if config.group > 1 and adapter.task != "reid":
        raise UserError(
            f"group: {config.group} needs re-ID crops, and {adapter.name} holds scenes."
        )
    if config.max_side is not None and adapter.task == "search":
        raise UserError(
            f"max_side: {config.max_side} would move the people of {adapter.name} from where its protocol "
            "says that they are; a benchmark keeps its size."
        )


@dataclass
class _Chosen:
    """Samples that are taken, in keyed order; other columns are by number in the listing."""

    order: Numbers
    sizes: Numbers
    """Bytes of every sample of the listing."""
    identities: Numbers
    """Number of the identity; -1 unlabelled."""
    claims: NDArray[np.uint64]
    """(N, 2): digest of all that the source says about each."""


@dataclass
class _Columns:
    """What a plan needs to know of every sample of a listing, gathered in one pass over them."""

    digests: bytearray = field(default_factory=bytearray)
    claims: bytearray = field(default_factory=bytearray)
    subset_digests: bytearray = field(default_factory=bytearray)
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    rules: bytearray = field(default_factory=bytearray)
    """0 kept; else 1 + the number of the rule that leaves it out."""
    identities: "array[int]" = field(default_factory=lambda: array("q"))


def _choose(
    listing: Listing, config: PlanConfig, rules: Sequence[Rule]
) -> tuple[_Chosen, dict[str, int]]:
    """What is left of a listing, and how many samples each rule leaves out."""
    columns = _gather(listing, config, rules)
    order, places = sort_digests(columns.digests)
    repeated = np.concatenate([[False], (order[1:] == order[:-1]).all(1)])
    left_out = np.frombuffer(columns.rules, np.uint8)[places]
    kept = places[~repeated & (left_out == 0)]
    subset = kept if config.subset is None else _subset(kept, columns.subset_digests, config.subset)
    excluded = {
        **listing.excluded,
        REPEATED: int(repeated.sum()),
        **{
            rule.name: int((~repeated & (left_out == number)).sum())
            for number, rule in enumerate(rules, start=1)
        },
        f"outside of the subset of {config.subset}": len(kept) - len(subset),
    }
    chosen = _Chosen(
        subset,
        np.array(columns.sizes),
        np.array(columns.identities),
        np.frombuffer(columns.claims, np.uint64).reshape(-1, 2),
    )
    return chosen, {rule: number for rule, number in excluded.items() if number}


def _gather(listing: Listing, config: PlanConfig, rules: Sequence[Rule]) -> _Columns:
    columns = _Columns()
    numbers: dict[str, int] = {}
    for place, sample in enumerate(_all_samples(listing)):
        columns.digests += digest("order", config.seed, sample.key)
        columns.claims += digest(_claims(sample))
        if config.subset is not None:
            columns.subset_digests += digest(SUBSET_SALT, sample.key)
        columns.sizes.append(sample.size_bytes)
        known = place < len(listing.samples)
        asked = (
            (number, rule) for number, rule in enumerate(rules, start=1) if known or rule.by_key
        )
        columns.rules.append(next((number for number, rule in asked if not rule.passes(sample)), 0))
        if config.group > 1:
            identity = sample.persons[0].identity if sample.persons else None
            new = len(numbers)
            columns.identities.append(-1 if identity is None else numbers.setdefault(identity, new))
    return columns


def _all_samples(listing: Listing) -> Iterator[SourceSample]:
    yield from listing.samples
    for faulty in listing.faulty:
        yield _placeholder(faulty)


def _placeholder(faulty: FaultySample) -> SourceSample:
    return SourceSample(faulty.key, "", faulty.origin, 0)


def _planned(listing: Listing, place: int, run: int) -> PlannedSample:
    if place < len(listing.samples):
        return PlannedSample(listing.samples[place], run)
    faulty = listing.faulty[place - len(listing.samples)]
    return PlannedSample(_placeholder(faulty), run, faulty.reason)


def _subset(kept: Numbers, digests: bytearray, size: int) -> Numbers:
    """Of `kept`, in its order, the `size` samples with the smallest digests."""
    _, by_digest = sort_digests(digests, kept)
    return kept[np.sort(by_digest[:size])]


def _put_in_runs(listing: Listing, chosen: _Chosen, config: PlanConfig) -> tuple[Numbers, Numbers]:
    """Order and run of each sample: runs of at most `group` crops of one identity, in keyed order;
    without identity, runs of one."""
    order = chosen.order
    if config.group == 1:
        return order, np.arange(len(order))
    identities = chosen.identities[order]
    heads = (turns(identities) % config.group == 0) | (identities < 0)
    keys = (_planned(listing, int(place), 0).source.key for place in order[heads])
    _, by_digest = sort_digests(b"".join(digest("runs", config.seed, key) for key in keys))
    rank = np.empty_like(by_digest)
    rank[by_digest] = np.arange(len(by_digest))
    runs = rank[heads_of(identities, heads)]
    together = np.argsort(runs, kind="stable")
    return order[together], runs[together]


def _hash(identity: Any, shards: Shards, claims: NDArray[np.uint64]) -> str:
    total = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for column in (claims[shards.order], shards.runs, shards.starts):
        total.update(np.ascontiguousarray(column).tobytes())
    known = len(shards.listing.samples)
    for place in shards.order[shards.order >= known]:
        faulty = shards.listing.faulty[place - known]
        total.update(f"\n{faulty.key} {faulty.reason}".encode())
    return total.hexdigest()


_encode = json.JSONEncoder(sort_keys=True).encode


def _claims(sample: SourceSample) -> str:
    """All that the source says about a sample but where exactly it lies (`locator`)."""
    persons = [person.model_dump_json(exclude_defaults=True) for person in sample.persons]
    claims = [sample.expected_size, sample.tags, sample.extra]
    return _encode([sample.key, sample.origin, sample.size_bytes, persons, claims])
