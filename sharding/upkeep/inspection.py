"""A page about a finished shard set: what a person looks at before spending GPU weeks on it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.page import Cell, Figure, Html
from pipeline.pages.plot import bar_chart, histogram
from pipeline.pages.sheet import sample_sheet
from pipeline.samples import SampleReader
from pipeline.shards import QUARANTINE, Manifest, ShardSet, protocol_name, read_parquet
from pipeline.stores.store import Location
from sharding.upkeep.gallery import (
    Outlier,
    crop_outliers,
    file_outliers,
    identity_rows,
    outlier_sheet,
    scene_outliers,
    variant_rows,
)
from sharding.upkeep.survey import (
    AnnotatedPerson,
    AnnotatedSample,
    Survey,
    annotated_persons,
    annotated_samples,
    survey,
)

SAMPLES = 2000
"""Annotations that are read; the indexes are read whole."""
SHEET = 24
IDENTITIES, PLACEMENTS = 6, 4
MOST_BARS = 20
EXAMPLES = 3


def inspect(url: str, samples: int = SAMPLES, seed: int = 0) -> str:
    """The page, as HTML. `samples` annotations, drawn by `seed`, stand for all where it says so.

    Raises UserError if there is no finished shard set at `url`, or a file of it is damaged.
    """
    shard_set = ShardSet(url)
    manifest, reader = shard_set.manifest, SampleReader(shard_set)
    numbers = survey(shard_set, _chosen(manifest, seed))
    if not len(numbers):
        raise UserError(f"{url}: there is no sample to look at, all of its samples were forgotten.")
    drawn = annotated_samples(shard_set, numbers, samples, seed)
    sections = [
        _in_short(manifest),
        _pictures(reader),
        *([_people(reader, numbers)] if any(numbers.shown.values()) else []),
        *([_placements(reader, drawn)] if manifest.variants > 1 else []),
        _distributions(manifest, numbers, drawn),
        _outliers(reader, numbers, drawn),
        _left_out(shard_set),
        *([_protocols(shard_set)] if manifest.protocols else []),
    ]
    title = f"Shard set: {manifest.dataset} {manifest.split}"
    return page.document(title, url, sections)


def _chosen(manifest: Manifest, seed: int) -> list[str]:
    """A few identities."""
    drawn = np.random.default_rng(seed).permutation(len(manifest.identities))[:IDENTITIES]
    return [manifest.identities[number] for number in sorted(drawn)]


def _in_short(manifest: Manifest) -> Html:
    first = [shard for shard in manifest.shards if shard.variant == 0]
    tar_bytes = sum(shard.tar_bytes for shard in manifest.shards)
    variants = f"in {manifest.variants} variants" if manifest.variants > 1 else ""
    ignored = f"and {manifest.ignored:,} regions to ignore" if manifest.ignored else ""
    forgotten = f"{manifest.forgotten:,} samples forgotten" if manifest.forgotten else ""
    figures = [
        Figure(manifest.samples, "samples", f"of {manifest.source_samples:,} in the source"),
        Figure(manifest.persons, "persons", ignored),
        Figure(len(manifest.identities), "identities"),
        Figure(len(first), "shards", variants),
        Figure(_bytes(tar_bytes), "in tars", _each(tar_bytes, manifest)),
        Figure(manifest.generation, "generation", forgotten),
    ]
    settings = [[name, json.dumps(value)] for name, value in _flat(manifest.settings)]
    return page.section(
        "In short",
        *_mismatches(manifest),
        page.key_figures(figures),
        _published(manifest),
        page.details("Settings that decided the bytes", page.table(["setting", "value"], settings)),
        page.paragraph(f"Licence: {manifest.licence}"),
        lead=f"Task {manifest.task}, domain {manifest.domain}, plan {manifest.plan_hash[:12]}. "
        f"{manifest.homepage}",
    )


def _bytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _each(tar_bytes: int, manifest: Manifest) -> str:
    stored = manifest.samples * manifest.variants
    return f"{tar_bytes / stored / 1000:,.1f} kB a sample" if stored else ""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`canvas.size`: [640, 640] for each leaf."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _mismatches(manifest: Manifest) -> Iterator[Html]:
    wrong = [check for check in manifest.counts if check.found != check.published]
    if wrong:
        named = ", ".join(f"{c.what} {c.found:,} instead of {c.published:,}" for c in wrong)
        yield page.callout(f"The source was not the release as published: {named}.")
    named_samples = manifest.source_samples - sum(manifest.excluded.values())
    if manifest.quarantined > 0.01 * named_samples:
        share = 100 * manifest.quarantined / named_samples
        yield page.callout(
            f"{manifest.quarantined:,} samples, {share:.1f} %, could not be used: see below which and why."
        )


def _published(manifest: Manifest) -> Html:
    if not manifest.counts:
        return page.paragraph("No published figure is known to compare the source with.")
    evidence = {"V": "seen on real files", "S": "read in a source", "R": "remembered"}
    rows = [
        [
            check.what,
            check.found,
            check.published,
            "equal" if check.found == check.published else "DIFFERS",
            evidence.get(check.evidence, check.evidence),
        ]
        for check in manifest.counts
    ]
    return page.table(["count", "in the source", "published", "", "how well known"], rows)


def _pictures(reader: SampleReader) -> Html:
    crops = reader.manifest.task == "reid"
    return page.section(
        "What it looks like",
        page.mark_legend(),
        sample_sheet(reader, SHEET, 150 if crops else 170),
        lead=f"{SHEET} samples spread evenly over the set, {'canvases ' if crops else ''}as stored.",
    )


def _people(reader: SampleReader, numbers: Survey) -> Html:
    return page.section(
        "A few people, side by side",
        identity_rows(reader, numbers.shown),
        lead="All that is annotated as one of a few identities, drawn at random: each must be one person.",
    )


def _placements(reader: SampleReader, drawn: Sequence[AnnotatedSample]) -> Html:
    places = [sample.place for sample in drawn[:: max(1, len(drawn) // PLACEMENTS)]]
    return page.section(
        "One crop, every variant",
        variant_rows(reader, places[:PLACEMENTS]),
        lead="The same crop as it was placed on the canvas of each variant; epochs read them in turn.",
    )


def _distributions(manifest: Manifest, numbers: Survey, drawn: Sequence[AnnotatedSample]) -> Html:
    persons = annotated_persons(list(drawn))
    part = len(drawn) < manifest.samples
    read = (
        f"{len(drawn):,} of {manifest.samples:,} samples, drawn at random"
        if part
        else "all samples"
    )
    return page.section(
        "In numbers",
        page.block(
            "Images",
            page.columns(*_exact_plots(manifest, numbers)),
            lead=f"Exact: from the indexes of all {len(numbers):,} samples.",
        ),
        page.block(
            "Persons",
            page.columns(*_annotation_plots(manifest, drawn, persons)),
            lead=f"{'An estimate: f' if part else 'Exact: f'}rom the annotations of {read}, with "
            f"{len(persons):,} persons.",
        ),
    )


def _exact_plots(manifest: Manifest, numbers: Survey) -> Iterator[Html]:
    columns = numbers.columns
    if manifest.task != "reid":
        yield histogram("Persons in an image", columns["persons"], "persons")
        if manifest.ignored:
            yield histogram("Regions to ignore in an image", columns["ignored"], "regions")
    if len(numbers.images_per_identity):
        yield histogram("Images of an identity", numbers.images_per_identity, "images")
    for name in ("width", "height"):
        if columns[name].min() < columns[name].max():
            yield histogram(f"Image {name}", columns[name], "pixels")
    yield histogram("Size of the coded image", columns["image_size"] / 1000, "kB")


def _annotation_plots(
    manifest: Manifest, drawn: Sequence[AnnotatedSample], persons: Sequence[AnnotatedPerson]
) -> Iterator[Html]:
    yield histogram("Height of a person's box", [one.height for one in persons], "pixels")
    yield histogram("Aspect of a box", [one.aspect for one in persons], "height / width")
    if manifest.task == "reid":
        crops = [s.annotation for s in drawn if s.annotation.crop_size and s.annotation.canvas]
        sizes = np.array([a.crop_size for a in crops], float).reshape(-1, 2)
        ratios = np.array([a.canvas and a.canvas.ratio for a in crops], float).reshape(-1, 2)
        yield histogram("Height of the source's crop", sizes[:, 1], "pixels")
        yield histogram("Canvas over crop: height", ratios[:, 1], "times")
        yield histogram("Canvas over crop: width", ratios[:, 0], "times")
    else:
        inside = [100 * one.inside for one in persons]
        yield histogram("Share of a box inside the image", inside, "%")
    yield from _categories("Cameras", [one.person.camera for one in persons])
    yield from _categories(
        "Occlusion, in the source's words", [p.person.occlusion for p in persons]
    )


def _categories(title: str, values: Sequence[str | None]) -> Iterator[Html]:
    """Bars for the most frequent values, if there is any."""
    counts = Counter(value for value in values if value is not None)
    if counts:
        top = sorted(counts.most_common(MOST_BARS))
        if rest := counts.total() - sum(number for _, number in top):
            top.append(("all others", rest))
        yield bar_chart(title, [name for name, _ in top], {title: [float(n) for _, n in top]})


def _outliers(reader: SampleReader, numbers: Survey, drawn: Sequence[AnnotatedSample]) -> Html:
    found: list[Outlier] = []
    if reader.manifest.task == "reid":
        found += crop_outliers(drawn)
    else:
        found += scene_outliers(numbers, annotated_persons(list(drawn)))
    found += file_outliers(numbers)
    return page.section(
        "What stands out",
        outlier_sheet(reader, found),
        lead="Many a wrong box or broken source shows here first. Files, images and crowds are the extremes "
        "of all samples, boxes (the yellow one is meant) and crops those of the annotations that were read.",
    )


def _left_out(shard_set: ShardSet) -> Html:
    manifest = shard_set.manifest
    parts = []
    if manifest.quarantined:
        parts.append(_quarantined(shard_set))
    if manifest.excluded:
        rows = list(manifest.excluded.items())
        parts.append(page.table(["excluded by a rule", "samples"], rows))
    if manifest.forgotten:
        parts.append(page.paragraph(f"Forgotten on request: {manifest.forgotten:,} samples."))
    if not parts:
        parts.append(page.paragraph("Nothing: every sample of the source is in the shards."))
    return page.section("What was left out", *parts)


def _quarantined(shard_set: ShardSet) -> Html:
    rows = _read_table(shard_set.location.child(QUARANTINE))
    counts = pc.value_counts(rows["reason"]).to_pylist()
    counts.sort(key=lambda one: -one["counts"])
    cells: list[list[Cell]] = []
    for one in counts[:MOST_BARS]:
        of_reason = rows.filter(pc.equal(rows["reason"], one["values"]))
        examples = of_reason["origin"].slice(0, EXAMPLES).to_pylist()
        cells.append([one["values"], one["counts"], ", ".join(examples)])
    table = page.table(["could not be used", "samples", "such as"], cells)
    more = len(counts) - MOST_BARS
    rest = page.paragraph(f"and {more} more reasons in {QUARANTINE}") if more > 0 else Html("")
    return page.join([table, rest])


def _protocols(shard_set: ShardSet) -> Html:
    rows: list[list[Cell]] = []
    for name in shard_set.manifest.protocols:
        table = _read_table(shard_set.location.child(protocol_name(name)))
        identities = pc.count_distinct(table["identity"]).as_py()
        spans = [_lengths(table[column], "all") for column in ("gallery", "positives")]
        rows.append([name, len(table), identities, *spans])
    header = ["protocol", "queries", "identities", "gallery samples", "positives a query"]
    return page.section(
        "Protocols",
        page.table(header, rows),
        lead="Search protocols of this set. A gallery of `all` is every sample but the query's own; "
        "positives of `all` are wherever the identity is annotated.",
    )


def _lengths(lists: pa.ChunkedArray, absent: str) -> str:
    """`50`, or `10 to 200`, of the lists that there are."""
    lengths = pc.list_value_length(lists).drop_null()
    if not len(lengths):
        return absent
    low, high = (f"{pc.min_max(lengths)[end].as_py():,}" for end in ("min", "max"))
    return low if low == high else f"{low} to {high}"


def _read_table(location: Location) -> pa.Table:
    try:
        return read_parquet(location.read())
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{location.url} cannot be read ({error}). `python -m sharding verify` tells what else is wrong."
        ) from None
