"""What a person reads of a run: the plan, the counts against published ones, the table at the end."""

from collections.abc import Iterable, Sequence

from pipeline.shards import Manifest
from sharding.datasets.base import Listing
from sharding.plan import Plan

HEADER = ("set", "images", "persons", "identities", "quarantined", "excluded", "source / published")


def plan_lines(plan: Plan, listing: Listing) -> list[str]:
    """For `--dry-run`."""
    variants = f" in {plan.variants} variants" if plan.variants > 1 else ""
    lines = [
        f"{plan.dataset} {plan.split}: {plan.samples:,} images, {plan.source_bytes / 1e6:,.1f} MB of source "
        f"-> {len(plan.shards):,} shards{variants}"
    ]
    lines += [f"  excluded, {rule}: {number:,}" for rule, number in plan.excluded.items()]
    if listing.missing:
        lines.append(
            f"  missing from the source: {len(listing.missing):,}, such as {listing.missing[0]}"
        )
    return lines


def count_lines(manifests: Iterable[Manifest]) -> list[str]:
    """A loud line for each source that does not hold what was published about it."""
    lines = []
    for manifest in manifests:
        wrong = [
            f"{check.what} {check.found:,} of {check.published:,} ({check.evidence})"
            for check in manifest.counts
            if check.found != check.published
        ]
        if wrong:
            lines.append(
                f"!! {manifest.dataset} {manifest.split} is not the release as published: {', '.join(wrong)}"
            )
    return lines


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
