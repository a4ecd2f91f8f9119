"""What went into a run: its shard sets, their pictures, their counts, and what was left out."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import BufferReader

from pipeline import page
from pipeline.errors import UserError
from pipeline.page import Html
from pipeline.samples import SampleReader
from pipeline.shards import QUARANTINE, Manifest
from pipeline.sheet import sample_sheet
from pipeline.stream import MixtureEntry, StreamConfig

SHOWN_FAULTS = 20


def what_went_in(
    config: StreamConfig, readers: dict[str, SampleReader | UserError], ledgers: Sequence[Path]
) -> Html:
    """`readers`: by URL, or why the shard set cannot be read now."""
    entries = [
        *active(config.scenes, config.scene_batch),
        *active(config.canvases, config.canvas_batch),
    ]
    blocks = [_dataset(entry, readers[entry.shards]) for entry in entries]
    return page.section(
        "What went in",
        _overview(config, readers),
        page.mark_legend(),
        *blocks,
        _replaced(ledgers),
        lead="The shard sets that the stream drew from. Pictures are spread evenly over each set, "
        "canvases as stored.",
    )


def active(entries: Sequence[MixtureEntry], batch: int) -> Sequence[MixtureEntry]:
    """A task with batch size 0 is off, whatever its mixture says."""
    return entries if batch else ()


def _overview(config: StreamConfig, readers: dict[str, SampleReader | UserError]) -> Html:
    rows: list[list[page.Cell]] = []
    for entries, batch in (
        (config.scenes, config.scene_batch),
        (config.canvases, config.canvas_batch),
    ):
        total = sum(entry.weight for entry in entries)
        for entry in active(entries, batch):
            reader = readers[entry.shards]
            if isinstance(reader, UserError):
                continue
            m = reader.manifest
            share = f"{100 * entry.weight / total:.0f} % of {batch}"
            excluded = sum(m.excluded.values())
            found = [m.samples, m.persons, m.ignored, len(m.identities), m.quarantined, excluded]
            rows.append([m.dataset, m.split, m.task, *found, share])
    header = ["dataset", "split", "task", "samples", "persons", "ignore regions", "identities"]
    return page.table([*header, "quarantined", "excluded", "share of a batch"], rows)


def _dataset(entry: MixtureEntry, reader: SampleReader | UserError) -> Html:
    if isinstance(reader, UserError):
        return page.block(entry.shards, page.callout(f"Its shards cannot be read now: {reader}"))
    manifest = reader.manifest
    count, height = (18, 150) if manifest.task == "reid" else (12, 130)
    return page.block(
        f"{manifest.dataset}, {manifest.split}",
        sample_sheet(reader, count, height),
        _counts(manifest),
        _left_out(reader),
        lead=f"{entry.shards}, plan {manifest.plan_hash[:12]}, generation {manifest.generation}, "
        f"{manifest.variants} variant{'s' if manifest.variants > 1 else ''}. {manifest.licence}",
    )


def _counts(manifest: Manifest) -> Html:
    if not manifest.counts:
        return Html("")
    differing = [check for check in manifest.counts if check.found != check.published]
    rows = [
        [
            check.what,
            check.published,
            check.found,
            "equal" if check.found == check.published else "differs",
        ]
        for check in manifest.counts
    ]
    summary = (
        f"{len(differing)} of {len(rows)} published counts differ from what was found"
        if differing
        else f"all {len(rows)} published counts were found"
    )
    return page.details(summary, page.table(["count", "published", "found", ""], rows))


def _left_out(reader: SampleReader) -> Html:
    manifest = reader.manifest
    parts = []
    if manifest.excluded:
        parts.append(page.table(["excluded by rule", "samples"], list(manifest.excluded.items())))
    if manifest.quarantined:
        data = reader.shard_set.location.child(QUARANTINE).read()
        faults = pq.read_table(BufferReader(data), columns=["origin", "reason"]).to_pylist()
        shown = [[row["origin"], row["reason"]] for row in faults[:SHOWN_FAULTS]]
        more = len(faults) - len(shown)
        parts.append(page.table(["quarantined", "why"], shown))
        if more:
            parts.append(page.paragraph(f"and {more} more in {QUARANTINE}"))
    if not parts:
        return Html("")
    excluded = sum(manifest.excluded.values())
    summary = f"left out: {manifest.quarantined} quarantined, {excluded} excluded by rule"
    return page.details(summary, *parts)


def _replaced(ledgers: Sequence[Path]) -> Html:
    """Samples that the stream could not use while training."""
    rows = [json.loads(line) for path in ledgers for line in path.read_text().splitlines()]
    if not rows:
        return Html("")
    counts = Counter((row["dataset"], row["reason"]) for row in rows)
    cells = [[dataset, reason, number] for (dataset, reason), number in counts.most_common()]
    return page.block(
        "Replaced while training",
        page.table(["dataset", "reason", "samples"], cells),
        lead="Another sample of the same dataset stood in for each of these.",
    )
