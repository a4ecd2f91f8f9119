"""What went into a run: its shard sets, their pictures, their counts, and what was left out."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.page import Html
from pipeline.pages.sheet import sample_sheet
from pipeline.samples import SampleReader
from pipeline.selection import Selection
from pipeline.settings import MixtureEntry, StreamConfig, TaskName
from pipeline.shards import QUARANTINE, Manifest, ShardSet, read_parquet
from training.model.norm import Kind

SHOWN_FAULTS = 20
KINDS: dict[TaskName, Kind] = {"detection": "scenes", "reid": "canvases"}
Chosen = tuple[str, str | None]
"""A shard set and the selection of it."""


@dataclass(frozen=True)
class Input:
    """An entry of the stream's mixtures whose task is on."""

    url: str
    kind: Kind
    size: tuple[int, int]
    """Height and width of its views."""
    share: str
    """Of the batch, in words."""
    reader: SampleReader | None
    problem: str = ""
    """Why there is no reader."""
    selection: str | None = None

    @property
    def samples(self) -> int:
        """That may be drawn."""
        if self.reader is None:
            return 0
        return sum(self.reader.slots) if self.selection else self.reader.manifest.samples


def open_inputs(config: StreamConfig) -> list[Input]:
    """Of all mixtures that a run has in turn. A set that has moved away since must not keep the rest of the
    page from being made.
    """
    inputs = []
    for task, kind in KINDS.items():
        batch, _, size = config.task(task)
        if batch:
            shares = _shares(config.mixtures(task), batch)
            inputs += [_open(entry, kind, size, share) for entry, share in shares.items()]
    return inputs


def _shares(
    mixtures: Sequence[tuple[int, Sequence[MixtureEntry]]], batch: int
) -> dict[Chosen, str]:
    """Of each set, or selection of one, in every mixture: `33 % of 4, 0 % of 4 from step 500`."""
    said: dict[Chosen, list[str]] = {}
    for from_step, entries in mixtures:
        total = sum(entry.weight for entry in entries)
        weights = {(entry.shards, entry.selection): entry.weight for entry in entries}
        since = f" from step {from_step:,}" if from_step else ""
        for chosen in dict.fromkeys([*said, *weights]):
            share = f"{100 * weights.get(chosen, 0) / total:.0f} % of {batch}{since}"
            said.setdefault(chosen, []).append(share)
    return {chosen: ", ".join(shares) for chosen, shares in said.items()}


def _open(entry: Chosen, kind: Kind, size: tuple[int, int], share: str) -> Input:
    url, selection = entry
    try:
        chosen = Selection.read(selection) if selection else None
        reader = SampleReader(ShardSet(url), selection=chosen)
        return Input(url, kind, size, share, reader, selection=selection)
    except UserError as error:
        return Input(url, kind, size, share, None, str(error), selection)


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
        chosen = f"{one.samples:,} chosen of {m.samples:,}" if one.selection else m.samples
        found = [chosen, m.persons, m.ignored, len(m.identities), m.quarantined, excluded]
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
    replaced = {place for path in ledgers for place in _places(path)}
    if not replaced:
        return Html("")
    counts = Counter((dataset, reason) for dataset, reason, *_ in sorted(replaced))
    cells: list[list[page.Cell]] = [
        [dataset, reason, number] for (dataset, reason), number in counts.most_common()
    ]
    return page.block(
        "Replaced while training",
        page.table(["dataset", "reason", "samples"], cells),
        lead="Another sample of the same dataset stood in for each of these.",
    )


def _places(ledger: Path) -> Iterator[tuple[str, str, str, int]]:
    """Dataset, reason, key and position: a resumed run writes those of repeated steps once more. A line that
    a killed run left half written is passed over.
    """
    for line in ledger.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        yield row["dataset"], row["reason"], row["key"], row["position"]
