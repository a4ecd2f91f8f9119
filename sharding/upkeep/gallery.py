"""Pictures for the page about a shard set: people side by side, placements of a crop, what stands out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import simplejpeg

from pipeline.annotation import Annotation, Box, Person
from pipeline.pages import page
from pipeline.pages.page import Html, Mark, Picture
from pipeline.rendering.decode import DecodeError, Pixels, decode
from pipeline.samples import BadSample, SampleReader
from sharding.upkeep.survey import AnnotatedPerson, AnnotatedSample, Place, Survey

CROPS_SHOWN = 12
"""Of one identity."""
VARIANTS_SHOWN = 8
SURROUNDINGS = 1.5
"""How far a close-up reaches around a box, in sides of the box."""
LEAST_SURROUNDINGS_PX = 40
WINDOW_HEIGHT_PX = 260


class Outlier(NamedTuple):
    why: str
    place: Place
    person: Person | None = None
    """Whom to show closely."""


def identity_rows(reader: SampleReader, shown: dict[str, list[Place]]) -> Html:
    """What was annotated as one of a few identities, cut out: one person, whatever the camera."""
    blocks = []
    for identity, places in shown.items():
        pictures = [_cut_out(reader, place, identity) for place in places[:CROPS_SHOWN]]
        count = f"{len(places)} image{'s' if len(places) != 1 else ''}"
        more = f", {CROPS_SHOWN} of them here" if len(places) > CROPS_SHOWN else ""
        sheet = page.contact_sheet(_there(pictures), 110)
        blocks.append(page.block(identity, sheet, lead=count + more))
    return page.columns(*blocks)


def variant_rows(reader: SampleReader, places: Iterable[Place]) -> Html:
    """The placements that a few crops have in the variants."""
    shown = range(min(reader.manifest.variants, VARIANTS_SHOWN))
    return page.columns(
        *(
            page.contact_sheet(_there(_canvas(reader, variant, place) for variant in shown), 170)
            for place in places
        )
    )


def outlier_sheet(reader: SampleReader, outliers: Iterable[Outlier]) -> Html:
    return page.contact_sheet(_there(_outlier(reader, one) for one in outliers), 190)


def scene_outliers(numbers: Survey, persons: Sequence[AnnotatedPerson]) -> Iterator[Outlier]:
    """The most crowded image by the indexes, and boxes by the annotations that were read."""
    row = int(numbers.columns["persons"].argmax())
    yield Outlier(f"most persons: {numbers.columns['persons'][row]}", numbers.place(row))
    yield from _box_outliers(persons)
    outside = [one for one in persons if one.inside < 0.5]
    if outside:
        least = min(outside, key=lambda one: one.inside)
        yield _close("mostly outside", f"{100 * (1 - least.inside):.0f} %", least)


def file_outliers(numbers: Survey) -> Iterator[Outlier]:
    sizes, pixels = numbers.columns["image_size"], _pixels(numbers)
    for what, row in (("largest", sizes.argmax()), ("smallest", sizes.argmin())):
        yield Outlier(f"{what} file: {sizes[row] / 1000:,.1f} kB", numbers.place(int(row)))
    if pixels.min() < pixels.max():
        for what, row in (("largest", pixels.argmax()), ("smallest", pixels.argmin())):
            width, height = (numbers.columns[name][row] for name in ("width", "height"))
            yield Outlier(f"{what} image: {width} x {height}", numbers.place(int(row)))


def crop_outliers(samples: Sequence[AnnotatedSample]) -> Iterator[Outlier]:
    """The extremes among the source's crops that the canvases were made of."""
    crops = [(s.annotation.crop_size, s) for s in samples if s.annotation.crop_size]
    kinds: dict[str, Callable[[tuple[int, int]], float]] = {
        "tallest crop": lambda size: size[1],
        "smallest crop": lambda size: -size[0] * size[1],
        "widest crop": lambda size: size[0] / size[1],
        "narrowest crop": lambda size: size[1] / size[0],
    }
    for what, measure in kinds.items():
        if crops:
            (width, height), sample = max(crops, key=lambda crop: measure(crop[0]))
            why = f"{what}: {width} x {height}"
            yield Outlier(why, sample.place, sample.annotation.persons[0])


def _box_outliers(persons: Sequence[AnnotatedPerson]) -> Iterator[Outlier]:
    shaped = [one for one in persons if np.isfinite(one.aspect) and one.aspect > 0]
    flat = [one for one in persons if not (np.isfinite(one.aspect) and one.aspect > 0)]
    if flat:
        yield _close("box without area", _size(flat[0].person.box), flat[0])
    if shaped:
        for what, one in (
            ("tallest box", max(shaped, key=lambda one: one.height)),
            ("smallest box", min(shaped, key=lambda one: one.height)),
        ):
            yield _close(what, f"{one.height:,.0f} px", one)
        for what, one in (
            ("narrowest box", max(shaped, key=lambda one: one.aspect)),
            ("widest box", min(shaped, key=lambda one: one.aspect)),
        ):
            yield _close(what, _size(one.person.box), one)


def _close(what: str, measure: str, one: AnnotatedPerson) -> Outlier:
    return Outlier(f"{what}: {measure}", one.sample.place, one.person)


def _size(box: Box) -> str:
    return f"{box[2] - box[0]:,.0f} x {box[3] - box[1]:,.0f} px"


def _pixels(numbers: Survey) -> np.ndarray:
    pixels: np.ndarray = numbers.columns["width"] * numbers.columns["height"]
    return pixels


def _outlier(reader: SampleReader, outlier: Outlier) -> Picture | None:
    sample = _read(reader, 0, outlier.place)
    if sample is None:
        return None
    annotation, image, image_type = sample
    try:
        if outlier.person is None:
            picture = _unnamed(page.sample_picture(annotation, image, image_type))
        else:
            picture = _close_up(annotation, image, image_type, outlier.person)
    except DecodeError:
        return None
    return replace(picture, caption=f"{outlier.why}. {picture.caption}")


def _close_up(annotation: Annotation, image: bytes, image_type: str, person: Person) -> Picture:
    """One box and what lies around it; of a canvas, the crop. Raises DecodeError."""
    left, top, right, bottom = person.box
    room = max(LEAST_SURROUNDINGS_PX, SURROUNDINGS * max(right - left, bottom - top))
    around = (left - room, top - room, right + room, bottom + room)
    name = annotation.key.removeprefix(f"{annotation.dataset}/{annotation.split}/")
    if annotation.canvas is not None:
        return _window(decode(image, image_type), person.box, name)
    return _window(decode(image, image_type), around, name, person.box)


def _window(pixels: Pixels, window: Box, caption: str, marked: Box | None = None) -> Picture:
    """What of the image lies in `window`, or all of it if nothing does."""
    height, width = pixels.shape[:2]
    x1, x2 = (int(min(max(x, 0), width)) for x in window[0::2])
    y1, y2 = (int(min(max(y, 0), height)) for y in window[1::2])
    if x2 <= x1 or y2 <= y1:
        x1, y1, x2, y2 = 0, 0, width, height
    cut = np.ascontiguousarray(pixels[y1:y2, x1:x2])
    jpeg = page.thumbnail(simplejpeg.encode_jpeg(cut, 92), "jpg", WINDOW_HEIGHT_PX)
    marks: tuple[Mark, ...] = ()
    if marked is not None:
        left, top, right, bottom = marked
        marks = (Mark((left - x1, top - y1, right - x1, bottom - y1), "identity"),)
    return Picture(jpeg, x2 - x1, y2 - y1, marks, caption)


def _cut_out(reader: SampleReader, place: Place, identity: str) -> Picture | None:
    sample = _read(reader, 0, place)
    if sample is None:
        return None
    annotation, image, image_type = sample
    person = next(one for one in annotation.persons if one.identity == identity)
    name = person.camera and f"camera {person.camera}"
    try:
        return _window(decode(image, image_type), person.box, name or annotation.key)
    except DecodeError:
        return None


def _canvas(reader: SampleReader, variant: int, place: Place) -> Picture | None:
    sample = _read(reader, variant, place)
    try:
        picture = None if sample is None else page.sample_picture(*sample)
    except DecodeError:
        return None
    return picture and replace(_unnamed(picture), caption=f"variant {variant}")


def _unnamed(picture: Picture) -> Picture:
    """Without names over the people."""
    return replace(picture, marks=tuple(replace(mark, label="") for mark in picture.marks))


def _read(reader: SampleReader, variant: int, place: Place) -> tuple[Annotation, bytes, str] | None:
    try:
        return reader.read(variant, place.shard, place.slot)
    except BadSample:
        return None


def _there(pictures: Iterable[Picture | None]) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]
