"""What a person reads of a run: the plan, the counts against published ones, the table at the end."""

from collections.abc import Sequence

from pipeline.shards import CountCheck, Manifest
from pipeline.store import Location
from sharding.output import compare_counts, quarantine_summary
from sharding.prepare import PreparedSet

HEADER = ("set", "images", "persons", "identities", "quarantined", "excluded", "source / published")


def plan_lines(prepared: PreparedSet) -> list[str]:
    """For `--dry-run`."""
    plan, faulty = prepared.plan, prepared.listing.faulty
    variants = f" in {plan.variants} variants" if plan.variants > 1 else ""
    lines = [
        f"{plan.dataset} {plan.split}: {plan.samples:,} images, {plan.source_bytes / 1e6:,.1f} MB of source "
        f"-> {len(plan.shards):,} shards{variants}"
    ]
    lines += [f"  excluded, {rule}: {number:,}" for rule, number in plan.excluded.items()]
    if faulty:
        lines.append(
            f"  missing or damaged: {len(faulty):,}, such as {faulty[0].origin} ({faulty[0].reason})"
        )
    counts = compare_counts(prepared.request.adapter, plan.split, prepared.listing)
    return lines + count_lines(prepared.name, counts)


def written_lines(manifest: Manifest, out: str) -> list[str]:
    """What is not as it should be in a set just written."""
    name = f"{manifest.dataset} {manifest.split}"
    lines = count_lines(name, manifest.counts)
    if manifest.quarantined:
        summary = quarantine_summary(Location(out))
        lines.append(f"{name}: {manifest.quarantined:,} quarantined: {summary}")
    return lines


def count_lines(name: str, counts: Sequence[CountCheck]) -> list[str]:
    """A loud line if a source does not hold what was published about it."""
    wrong = [
        f"{check.what} {check.found:,} of {check.published:,} ({check.evidence})"
        for check in counts
        if check.found != check.published
    ]
    return [f"!! {name} is not the release as published: {', '.join(wrong)}"] if wrong else []


def table_lines(manifests: Sequence[Manifest]) -> list[str]:
    """A row a set, and their sum if there are several."""
    rows = [_row(manifest) for manifest in manifests]
    if len(manifests) > 1:
        numbers = [
            sum(column)
            for column in zip(*(_numbers(manifest) for manifest in manifests), strict=True)
        ]
        rows.append(("sum", *(f"{number:,}" for number in numbers), ""))
    table = [HEADER, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in table
    ]


def _numbers(manifest: Manifest) -> tuple[int, ...]:
    return (
        manifest.samples,
        manifest.persons,
        len(manifest.identities),
        manifest.quarantined,
        sum(manifest.excluded.values()),
    )


def _row(manifest: Manifest) -> tuple[str, ...]:
    images = [check for check in manifest.counts if check.what == "images"]
    against = f"{images[0].found:,} / {images[0].published:,}" if images else "-"
    numbers = (f"{number:,}" for number in _numbers(manifest))
    return (f"{manifest.dataset} {manifest.split}", *numbers, against)
