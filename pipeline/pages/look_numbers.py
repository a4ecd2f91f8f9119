"""The numbers on the page about a few batches: the mixture, the fates of persons, sizes of boxes."""

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.batch import Use
from pipeline.pages import page
from pipeline.pages.look import Fate, Gallery, ShownImage, ShownPerson
from pipeline.pages.page import Cell, Html
from pipeline.pages.plot import histogram
from pipeline.rendering.renderer import TaskName
from pipeline.settings import MIXTURE_KEYS

DRAWN = (Use.MATCH, Use.DETECT, Use.IGNORE)


def mixture_table(gallery: Gallery) -> Html:
    """Each dataset's share as the mixture has it at the first step, against what came."""
    came = Counter((image.task, image.source) for image in gallery.images)
    rows: list[list[Cell]] = []
    for task, stream in gallery.stream.tasks.items():
        images = [image for image in gallery.images if image.task == task]
        stretch = stream.order.stretches_before(images[0].step + 1)[-1]
        for source, turns in zip(stretch.members, stretch.mixture.counts, strict=True):
            reader, share = stream.readers[source], turns / stretch.mixture.cycle
            samples, name = sum(reader.slots), reader.source_name
            number = came[task, name]
            epochs = sorted({image.epoch for image in images if image.source == name})
            rows.append(
                [
                    name,
                    MIXTURE_KEYS[task],
                    f"{100 * share:.1f} %",
                    f"{100 * number / len(images):.1f} %",
                    number,
                    samples,
                    round(samples / (share * stream.batch)),
                    ", ".join(map(str, epochs)) or "-",
                ]
            )
    header = ["dataset", "as", "share", "came here", "images here", "samples", "steps an epoch"]
    return page.block("The mixture", page.table([*header, "epoch here"], rows))


def fate_table(images: Sequence[ShownImage]) -> Html:
    """How many persons of each dataset have which fate."""
    rows: list[list[Cell]] = []
    for source in dict.fromkeys(image.source for image in images):
        mine = [image for image in images if image.source == source]
        persons = [person for image in mine for person in image.persons]
        labelled = sum(person.row >= 0 for person in persons)
        fates = Counter(person.fate for person in persons)
        rows.append([source, len(mine), len(persons), labelled, *(fates[fate] for fate in Fate)])
    fates_named = [fate.value for fate in Fate]
    return page.block(
        "What becomes of persons",
        page.table(["dataset", "images", "persons", "labelled", *fates_named], rows),
    )


def histograms(gallery: Gallery, task: TaskName) -> Iterator[Html]:
    images = [image for image in gallery.images if image.task == task]
    persons = [person for image in images for person in image.persons]
    heights: dict[str, list[float]] = {use.name: [] for use in DRAWN}
    for person in persons:
        for use, box in zip(person.uses, person.boxes, strict=True):
            if use in DRAWN:
                heights[use.name].append(box[3] - box[1])
    least = gallery.stream.config.views.match_height
    yield histogram(
        "Height of a box in a view, by use", heights, "pixels", (f"match_height {least:g}", least)
    )
    if task == "detection":
        yield histogram("Persons in an image", [len(image.persons) for image in images], "persons")
    if gallery.stream.config.views.number == 2:
        yield from _pair_histograms(images, task)


def _pair_histograms(images: Sequence[ShownImage], task: TaskName) -> Iterator[Html]:
    pairs = [[person for person in image.persons if person.is_pair] for image in images]
    ratios = [_ratio(person) for pair in pairs for person in pair]
    yield histogram("The larger view of a person over the smaller", ratios, "times, of MATCH pairs")
    if task == "detection":
        yield histogram("MATCH in both views, in an image", [len(pair) for pair in pairs], "pairs")


def _ratio(person: ShownPerson) -> float:
    heights = [box[3] - box[1] for box in person.boxes]
    return max(heights) / min(heights)
