"""The page about a few batches: what a researcher looks at before spending GPU weeks on a stream."""

import json
from collections.abc import Iterator, Sequence

from pipeline.batch import Use
from pipeline.pages import page
from pipeline.pages.look import MOST_PERSONS, Fate, Gallery, ShownImage, ShownPerson
from pipeline.pages.look_numbers import fate_table, histograms, mixture_table
from pipeline.pages.page import Cell, Figure, Html, Mark, MarkKind, Picture
from pipeline.rendering.renderer import TaskName
from pipeline.settings import MIXTURE_KEYS
from pipeline.stream import Stream

ROW_HEIGHTS: dict[TaskName, int] = {"detection": 320, "reid": 210}
"""Of the views on the page, in pixels."""
MARKS: dict[Use, MarkKind] = {Use.MATCH: "match", Use.DETECT: "detect", Use.IGNORE: "ignore"}
REPLACED_SHOWN = 20


def look_page(gallery: Gallery, origin: str) -> str:
    """The page, as HTML; `origin` names where the settings came from."""
    first, last = gallery.images[0].step, gallery.images[-1].step
    stream = gallery.stream
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    sections = [
        _in_short(gallery, steps),
        how_to_read(stream),
        _in_numbers(gallery),
        *(_step(gallery, step) for step in range(first, last + 1)),
    ]
    return page.document(f"Batches of {steps}", origin, sections)


def how_to_read(stream: Stream) -> Html:
    rules = stream.config.views.thresholds
    match, detect = f"{100 * rules.match:g} %", f"{100 * rules.detect:g} %"
    height = f"{rules.match_height:g} px"
    rows: list[list[Cell]] = [
        [
            page.mark_swatch("match"),
            "MATCH",
            f"at least {match} of the box is in the view, {height} high or more",
            "detection and OIM; L_con if unlabelled, and MATCH in the other view too",
        ],
        [
            page.mark_swatch("detect"),
            "DETECT",
            f"at least {detect} is in the view, but it is cut or too small for re-ID",
            "detection alone",
        ],
        [
            page.mark_swatch("ignore"),
            "IGNORE",
            f"the source says so, or less than {detect} is in the view",
            "neither a positive nor a negative",
        ],
        ["", "ABSENT", "not in this view; listed below the image", "nothing"],
    ]
    return page.section(
        "How to read it",
        page.table(["box", "use in a view", "when, by this stream's settings", "what for"], rows),
        page.paragraph(
            "Number and colour are the person's, the same in all views of an image: point at one, and the "
            "others fade. Below stands what becomes of each person, with its uses in the left | the right "
            "view where they differ, and its identity and row in the look-up table where it has one. "
            "Striped margins are padding, grey rectangles in boxes erasures."
        ),
    )


def image_views(image: ShownImage) -> Html:
    """The views with their boxes, and below them all that is known of the image and its persons."""
    left_out = len(image.persons) - MOST_PERSONS
    more = page.paragraph(f"and {left_out:,} more persons") if left_out > 0 else Html("")
    return page.side_by_side(
        [_picture(image, view) for view in range(len(image.valid))],
        ROW_HEIGHTS[image.task],
        Html(f'<p class="key">{page.escape(image.key)}</p>'),
        page.paragraph(_provenance(image)),
        *_fates(image.persons[:MOST_PERSONS]),
        more,
    )


def settings_table(stream: Stream) -> Html:
    settings = stream.config.model_dump(mode="json", include={"seed", "views", "max_bad_share"})
    flat = {**settings.pop("views"), **settings}
    rows: list[list[Cell]] = [[name, json.dumps(value)] for name, value in flat.items()]
    return page.details("Settings of the views", page.table(["setting", "value"], rows))


def replaced_table(stream: Stream) -> Html:
    """What could not be used, if there is any."""
    records = list(stream.ledger.recent)[-REPLACED_SHOWN:]
    if not records:
        return Html("")
    rows: list[list[Cell]] = [
        [r.position, r.dataset, r.key, r.reason, f"{r.shard}, {r.offset}"] for r in records
    ]
    header = ["position", "dataset", "sample", "why", "tar, byte"]
    return page.block(
        "Could not be used",
        page.table(header, rows),
        lead="Another sample of the same dataset came instead, at the same position.",
    )


def _in_short(gallery: Gallery, steps: str) -> Html:
    stream, images = gallery.stream, gallery.images
    config = stream.config
    persons = [person for image in images for person in image.persons]
    matched = sum(set(person.uses) == {Use.MATCH} for person in persons)
    bad = stream.ledger.bad.total()
    waited = 100 * min(1, stream.stats.wait_s / gallery.elapsed_s)
    threads = f"{config.threads} thread{'s' if config.threads > 1 else ''}"
    figures = [
        Figure(f"{config.scene_batch} + {config.canvas_batch}", "scenes + canvases a step"),
        Figure(len(images), "images", f"{steps}, each in {config.views.in_words}"),
        Figure(len(persons), "persons", f"{matched:,} MATCH in {config.views.in_words}"),
        Figure(bad, "samples replaced", "see below" if bad else "none was unusable"),
        Figure(config.views.mode, "arithmetic of the views"),
        Figure(
            round(len(images) / gallery.elapsed_s, 1),
            "images a second",
            f"{threads}, start included; {waited:.0f} % of the time waiting",
        ),
    ]
    return page.section(
        "In short",
        page.key_figures(figures),
        mixture_table(gallery),
        replaced_table(stream),
        settings_table(stream),
        lead=f"As rank 0 of 1 gets them. Stream {stream.digest}",
    )


def _in_numbers(gallery: Gallery) -> Html:
    return page.section(
        "In numbers",
        fate_table(gallery.images),
        *(
            page.block(name.capitalize(), page.columns(*histograms(gallery, task)))
            for task, name in MIXTURE_KEYS.items()
            if task in gallery.stream.tasks
        ),
        lead=f"Of all {len(gallery.images):,} images of these steps, shown or not.",
    )


def _step(gallery: Gallery, step: int) -> Html:
    blocks = []
    for task, name in MIXTURE_KEYS.items():
        images = [image for image in gallery.images if (image.step, image.task) == (step, task)]
        shown = [image for image in images if image.views is not None]
        if images:
            left_out = f", the first {len(shown)} of them here" if len(shown) < len(images) else ""
            lead = (
                f"{len(images)} in the batch{left_out}; "
                f"positions {images[0].position:,} to {images[-1].position:,}."
            )
            sheet = page.sheet(image_views(image) for image in shown)
            blocks.append(page.block(name.capitalize(), sheet, lead=lead))
    return page.section(f"Step {step}", *blocks)


def _picture(image: ShownImage, view: int) -> Picture:
    assert image.views is not None
    marks = tuple(
        Mark(person.boxes[view], MARKS[person.uses[view]], str(person.number), person.number)
        for person in image.persons[:MOST_PERSONS]
        if person.uses[view] in MARKS
    )
    valid = image.valid[view]
    return Picture(
        image.views[view],
        image.size.width,
        image.size.height,
        marks,
        f"{image.key}, view {view + 1}",
        (valid.width, valid.height),
    )


def _provenance(image: ShownImage) -> str:
    first, second = image.variants
    variants = f"variant {first}" if first == second else f"variants {first} | {second}"
    parts = [
        f"position {image.position:,}",
        image.source,
        *([f"domain {image.domain}"] if image.domain not in image.source.split("/") else []),
        f"epoch {image.epoch}, {variants}",
    ]
    if set(image.valid) != {image.size}:
        contents = " | ".join(f"{valid.width} x {valid.height}" for valid in image.valid)
        parts.append(f"content {contents} of {image.size.width} x {image.size.height}")
    return "; ".join(parts)


def _fates(persons: Sequence[ShownPerson]) -> Iterator[Html]:
    """A line for each fate that there is."""
    for fate in Fate:
        alike = [person for person in persons if person.fate is fate]
        if alike:
            chips = page.join(_chip(person) for person in alike)
            yield Html(f"<p>{page.escape(fate.value)}: {chips}</p>")
    if not persons:
        yield page.paragraph("nobody is annotated")


def _chip(person: ShownPerson) -> Html:
    notes = []
    if len(set(person.uses)) > 1:
        notes.append(" | ".join(use.name.lower() for use in person.uses))
    if person.identity:
        notes.append(f"{person.identity} (row {person.row})")
    return page.chip(person.number, str(person.number), ", ".join(notes))
