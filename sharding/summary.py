"""What is said of a run: the plan before it, counts against published ones, a table and a JSON after it."""

import functools
import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipeline.shards import CountCheck, Manifest
from pipeline.stores.store import Location
from sharding.estimate import Estimate, estimate
from sharding.job import SetOutcome
from sharding.output import compare_counts, quarantine_summary, read_quarantine
from sharding.prepare import PreparedSet
from sharding.progress import megabytes
from sharding.retry import PreparedRetry

HEADER = (
    *("set", "images", "boxes", "identities", "quarantined", "excluded"),
    *("source / published", "images / recipe"),
)
DECIDING_PACKAGES = ("simplejpeg", "opencv-python-headless", "numpy", "pyarrow")
"""Their versions decide bytes, besides source and settings."""


def plan_report(sets: Sequence[PreparedSet | PreparedRetry], cores: int) -> Iterator[str]:
    """For `--dry-run`: what would be written, and how long it would take."""
    made, images = [], 0
    for prepared in sets:
        if isinstance(prepared, PreparedRetry):
            yield f"{prepared.name}: {len(prepared.samples):,} images to be tried again"
            yield from prepared.notes
            continue
        images += prepared.plan.samples
        yield from _plan_lines(prepared)
        yield from prepared.notes
        made.append(estimate(prepared))
        if prepared.todo:
            yield f"  estimate from {made[-1].tried} samples: {_cost(made[-1], cores)}"
        counts = compare_counts(prepared.request.adapter, prepared.request.split, prepared.listing)
        yield from count_lines(prepared.name, counts)
    if len(made) > 1:
        yield (
            f"in all: {images:,} images, {_cost(functools.reduce(Estimate.__add__, made), cores)}"
        )


def _plan_lines(prepared: PreparedSet) -> list[str]:
    plan, faulty = prepared.plan, prepared.listing.faulty
    variants = f" in {plan.variants} variants" if plan.variants > 1 else ""
    lines = [
        f"{prepared.name}: {plan.samples:,} images, {megabytes(plan.source_bytes)} of source "
        f"-> {len(plan.shards):,} shards{variants}, {len(prepared.todo):,} of them to be written"
    ]
    lines += [f"  excluded, {rule}: {number:,}" for rule, number in plan.excluded.items()]
    if faulty:
        lines.append(
            f"  missing or damaged: {len(faulty):,}, such as {faulty[0].origin} ({faulty[0].reason})"
        )
    return lines


def _cost(made: Estimate, cores: int) -> str:
    if not made.tried:
        return "nothing is known, for none could be used"
    hours = made.core_hours / cores
    time = f"{hours:,.1f} hours" if hours >= 0.1 else f"{60 * hours:.1f} minutes"
    return f"{megabytes(made.written_bytes)} to write in {time} on {cores} cores"


def written_lines(manifest: Manifest, out: str) -> list[str]:
    """What is not as it should be in a set just written."""
    name = f"{manifest.dataset} {manifest.split}"
    lines = count_lines(name, manifest.counts)
    if manifest.quarantined:
        summary = quarantine_summary(Location(out))
        lines.append(f"{name}: {manifest.quarantined:,} quarantined: {summary}")
    if rescued := sum(s.ok for s in manifest.shards if s.supplement and s.variant == 0):
        lines.append(
            f"{name}: {rescued:,} once quarantined samples in supplement shards; the set no longer equals "
            "a fresh write"
        )
    if manifest.generation:
        lines.append(
            f"{name}: generation {manifest.generation}, {manifest.forgotten:,} samples forgotten; left as it "
            "is, for writing it anew would bring them back"
        )
    return lines


def count_lines(name: str, counts: Sequence[CountCheck]) -> list[str]:
    """A loud line if a source does not hold what was published about it."""
    wrong = [
        f"{check.what} {check.found:,} of {check.published:,} ({check.evidence})"
        for check in counts
        if check.found != check.published
    ]
    return [f"!! {name} is not the release as published: {', '.join(wrong)}"] if wrong else []


def table_lines(outcomes: Sequence[SetOutcome]) -> list[str]:
    """A row a finished set, and their sum if there are several."""
    rows = [_Row.of(one.manifest, one.request.expected) for one in outcomes if one.manifest]
    if len(rows) > 1:
        rows.append(_Row.sum(rows))
    table = [HEADER, *(row.cells() for row in rows)]
    if all(row.recipe is None for row in rows):
        table = [cells[:-1] for cells in table]
    widths = [max(map(len, column)) for column in zip(*table)]
    return [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
        for cells in table
    ]


def run_summary(outcomes: Sequence[SetOutcome]) -> bytes:
    """The run as JSON, for programs."""
    record = {
        "machine": platform.machine(),
        "packages": {name: version(name) for name in DECIDING_PACKAGES},
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "sets": [_set_record(outcome) for outcome in outcomes],
    }
    return (json.dumps(record, indent=1) + "\n").encode()


def _set_record(outcome: SetOutcome) -> dict[str, Any]:
    request, manifest = outcome.request, outcome.manifest
    record: dict[str, Any] = {
        "dataset": request.adapter.name,
        "split": request.split,
        "source": request.source.url,
        "out": request.out,
        "seconds": round(outcome.seconds, 1),
        "shards_written": outcome.shards_written,
        "shards_kept": outcome.shards_kept,
        "read_bytes": outcome.read_bytes,
        "written_bytes": outcome.written_bytes,
        "error": outcome.error,
    }
    if manifest is None:
        return record
    reasons = Counter(read_quarantine(Location(request.out))["reason"].to_pylist())
    return {
        **record,
        "samples": manifest.samples,
        "persons": manifest.persons,
        "ignored": manifest.ignored,
        "identities": len(manifest.identities),
        "quarantined": dict(reasons.most_common()),
        "excluded": manifest.excluded,
        "forgotten": manifest.forgotten,
        "source_samples": manifest.source_samples,
        "counts": [check.model_dump() for check in manifest.counts],
        "generation": manifest.generation,
        "plan_hash": manifest.plan_hash,
    }


@dataclass(frozen=True)
class _Row:
    name: str
    numbers: tuple[int, ...]
    source: tuple[int, int] | None
    """Images that the source holds, and those published."""
    recipe: tuple[int, int] | None
    """Images in shards, and those that the recipe expects."""

    @classmethod
    def of(cls, manifest: Manifest, expected: int | None) -> "_Row":
        images = (check for check in manifest.counts if check.what == "images")
        numbers = (
            manifest.samples,
            manifest.persons + manifest.ignored,
            len(manifest.identities),
            manifest.quarantined,
            sum(manifest.excluded.values()),
        )
        return cls(
            f"{manifest.dataset} {manifest.split}",
            numbers,
            next(((check.found, check.published) for check in images), None),
            None if expected is None else (manifest.samples, expected),
        )

    @classmethod
    def sum(cls, rows: Sequence["_Row"]) -> "_Row":
        return cls(
            "sum",
            tuple(map(sum, zip(*(row.numbers for row in rows)))),
            _add(row.source for row in rows),
            _add(row.recipe for row in rows),
        )

    def cells(self) -> tuple[str, ...]:
        numbers = (f"{number:,}" for number in self.numbers)
        pairs = (
            f"{pair[0]:,} / {pair[1]:,}" if pair else "-" for pair in (self.source, self.recipe)
        )
        return (self.name, *numbers, *pairs)


def _add(pairs: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    """Their sums; None unless all are known."""
    known = list(pairs)
    if None in known:
        return None
    return sum(pair[0] for pair in known if pair), sum(pair[1] for pair in known if pair)
