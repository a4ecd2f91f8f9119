"""What comes at a position: the sample as it is stored, and as the trainer gets it."""

from dataclasses import dataclass

from pipeline.ledger import BadRecord
from pipeline.pages import page
from pipeline.pages.look import Gallery, ShownImage
from pipeline.pages.look_page import how_to_read, image_views, settings_table
from pipeline.pages.page import Html
from pipeline.rendering.renderer import TaskName
from pipeline.samples import Sample
from pipeline.settings import MIXTURE_KEYS
from pipeline.stream import Stream

STORED_HEIGHT_PX = 480


@dataclass(frozen=True)
class Located:
    """A sample that came at a position."""

    image: ShownImage
    sample: Sample
    """As it is stored, in the variant of the first view."""
    origins: tuple[str, ...]
    """The tar and byte of each variant that was read."""
    asked: str | None
    """Key of the sample that was to come; None: it was forgotten."""
    replaced: tuple[BadRecord, ...]
    """What was to come here, one after the other, and could not be used."""

    def facts(self) -> list[tuple[str, str]]:
        """What it is, in words, and all that is to be said of it."""
        image, (record, data, image_type) = self.image, self.sample
        labelled = sum(person.identity is not None for person in record.persons)
        ignored = sum(person.ignore for person in record.persons)
        variants = " and ".join(map(str, dict.fromkeys(image.variants)))
        return [
            *self._replacement(),
            ("sample", image.key),
            ("dataset", f"{image.source}, epoch {image.epoch}, variant {variants}"),
            *(("stored in", origin) for origin in self.origins),
            ("image", f"{record.width} x {record.height} {image_type}, {len(data):,} bytes"),
            ("persons", f"{len(record.persons)}: {labelled} labelled, {ignored} to ignore"),
        ]

    def _replacement(self) -> list[tuple[str, str]]:
        if self.asked == self.image.key:
            return [("usable", "yes")]
        asked = "forgotten" if self.asked is None else f"no, {self.asked} could not be used"
        tried = [(r.key, f"{r.reason}: {r.shard} at byte {r.offset:,}") for r in self.replaced]
        return [
            ("usable", f"{asked}; another sample of the same dataset comes instead"),
            *(("unusable", f"{key}, {why}") for key, why in tried),
        ]


def locate(stream: Stream, task: TaskName, position: int) -> Located:
    """Raises UserError where neither the sample nor anything in its place can be used."""
    half = stream.tasks[task]
    before = len(stream.ledger.recent)
    gallery = Gallery(stream, images_per_step=1)
    gallery.add(stream.one(task, position))
    image = gallery.images[0]
    first, place = half.order.at(position), half.place(position, image.key)
    reader = half.readers[place.source]
    origins = [
        reader.origin(variant, place.shard, place.slot) for variant in dict.fromkeys(image.variants)
    ]
    return Located(
        image=image,
        sample=reader.read(image.variants[0], place.shard, place.slot),
        origins=tuple(f"{url} at byte {offset:,}" for url, offset in origins),
        asked=half.readers[first.source].key(first.shard, first.slot),
        replaced=tuple(stream.ledger.recent)[before:],
    )


def where_page(stream: Stream, found: list[Located], origin: str) -> str:
    """The page, as HTML."""
    sections = [*(_section(one) for one in found), how_to_read(stream)]
    settings = page.section("Settings", settings_table(stream), lead=f"Stream {stream.digest}")
    title = f"Position {found[0].image.position:,}"
    return page.document(title, origin, [*sections, settings])


def _section(one: Located) -> Html:
    stored = page.sample_picture(*one.sample, height_px=STORED_HEIGHT_PX)
    return page.section(
        f"{MIXTURE_KEYS[one.image.task].capitalize()}, step {one.image.step}",
        page.table(["", ""], one.facts()),
        page.block("As stored", page.mark_legend(), page.contact_sheet([stored], 260)),
        page.block("As the trainer gets it", page.sheet([image_views(one.image)])),
    )
