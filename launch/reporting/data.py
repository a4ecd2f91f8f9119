"""What went into a run: its shard sets, their pictures, their counts, and what was left out."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.page import Html
from pipeline.pages.sheet import sample_sheet
from pipeline.samples import SampleReader
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.shards import QUARANTINE, Manifest, ShardSet, read_parquet
from training.model.norm import Kind

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Input:
    """An entry of the stream's mixture whose task is on."""

    url: str
    kind: Kind
    size: tuple[int, int]
    """Height and width of its views."""
    share: str
    """Of the batch, in words."""
    reader: SampleReader | None
    problem: str = ""
    """Why there is no reader."""


def open_inputs(config: StreamConfig) -> list[Input]:
    """A set that has moved away since must not keep the rest of the page from being made."""
    tasks: list[tuple[Kind, tuple[MixtureEntry, ...], int, tuple[int, int]]] = [
        ("scenes", config.scenes, config.scene_batch, config.scene_size),
        ("canvases", config.canvases, config.canvas_batch, config.canvas_size),
    ]
    inputs = []
    for kind, entries, batch, size in tasks:
        total = sum(entry.weight for entry in entries)
        for entry in entries if batch else ():
            share = f"{100 * entry.weight / total:.0f} % of {batch}"
            try:
                reader = SampleReader(ShardSet(entry.shards))
                inputs.append(Input(entry.shards, kind, size, share, reader))
            except UserError as error:
                inputs.append(Input(entry.shards, kind, size, share, None, str(error)))
    return inputs


def what_went_in(inputs: Sequence[Input], ledgers: Sequence[Path]) -> Html:
    canvases = ", canvases as stored" if any(one.kind == "canvases" for one in inputs) else ""
    return page.section(
        "What went in",
        _overview(inputs),
        page.mark_legend(),
        *(_dataset(one) for one in inputs),
        _replaced(ledgers),
        lead="The shard sets that the stream drew from. Pictures are spread evenly over each set"
        f"{canvases}.",
    )


def _overview(inputs: Sequence[Input]) -> Html:
    rows: list[list[page.Cell]] = []
    for one in inputs:
        if one.reader is None:
            continue
        m = one.reader.manifest
        excluded = sum(m.excluded.values())
        found = [m.samples, m.persons, m.ignored, len(m.identities), m.quarantined, excluded]
        rows.append([m.dataset, m.split, m.task, *found, one.share])
    header = ["dataset", "split", "task", "samples", "persons", "ignore regions", "identities"]
    return page.table([*header, "quarantined", "excluded", "share of a batch"], rows)


def _dataset(one: Input) -> Html:
    if one.reader is None:
        return page.block(one.url, page.callout(f"Its shards cannot be read now: {one.problem}"))
    manifest = one.reader.manifest
    count, height = (18, 150) if one.kind == "canvases" else (12, 130)
    variants = f"{manifest.variants} variant{'s' if manifest.variants > 1 else ''}"
    return page.block(
        f"{manifest.dataset}, {manifest.split}",
        sample_sheet(one.reader, count, height),
        _counts(manifest),
        _left_out(one.reader),
        lead=f"{one.url}, plan {manifest.plan_hash[:12]}, generation {manifest.generation}, {variants}. "
        f"{manifest.licence}",
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
        faults = read_parquet(data).select(["origin", "reason"]).to_pylist()
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
