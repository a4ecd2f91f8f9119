"""The one HTML helper: a self-contained page of text, figures, tables and pictures with boxes.

A page needs no network and no script: pictures are data URIs, plots (`pipeline.pages.plot`) inline SVG. A
plain `str` is text and gets escaped wherever it goes; only `Html` passes as it is.
"""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg

from pipeline.annotation import Annotation, Box
from pipeline.pages.style import LINK_STYLE, MARK_COLOURS, STYLE
from pipeline.rendering.decode import MOST_HALVINGS, decode, image_size

Cell = str | int | float | None
MarkKind = Literal["identity", "unlabelled", "ignore", "match", "detect", "right", "wrong"]
MARK_NAMES: dict[MarkKind, str] = {
    "identity": "person with identity",
    "unlabelled": "person, unlabelled",
    "ignore": "region to ignore",
}


class Html(str):
    """Markup that is safe to insert as it is."""


@dataclass(frozen=True)
class Mark:
    """A box over a picture, xyxy in the picture's pixels; parts outside of the picture are cut."""

    box: Box
    kind: MarkKind
    label: str = ""
    link: int | None = None
    """Marks of one number have one colour, and in a `pair` light up together."""


@dataclass(frozen=True)
class Picture:
    jpeg: bytes
    width: int
    """Width and height in which the marks are given; the JPEG may be smaller."""
    height: int
    marks: tuple[Mark, ...] = ()
    caption: str = ""
    content: tuple[int, int] | None = None
    """Width and height of what is no padding; the padding is hatched."""


@dataclass(frozen=True)
class Figure:
    """A key figure: the value in large type over what it is."""

    value: Cell
    label: str
    note: str = ""


def escape(value: object) -> Html:
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    return Html("".join(escape(part) for part in parts))


def number(value: Cell) -> str:
    """A value as people read it: thousands separated, four significant digits, a dash for nothing."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def document(title: str, subtitle: str, sections: Iterable[Html]) -> str:
    """The whole page; write it as UTF-8."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{LINK_STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
        f"<main>{join(sections)}</main></body></html>\n"
    )


def section(title: str, *parts: Html, lead: str = "") -> Html:
    return Html(f"<section><h2>{escape(title)}</h2>{_lead(lead)}{join(parts)}</section>")


def block(title: str, *parts: Html, lead: str = "") -> Html:
    """A titled part of a section."""
    return Html(f'<div class="block"><h3>{escape(title)}</h3>{_lead(lead)}{join(parts)}</div>')


def paragraph(text: str) -> Html:
    return Html(f"<p>{escape(text)}</p>")


def callout(text: str) -> Html:
    """What a reader must not miss, such as that a run is not finished."""
    return Html(f'<p class="callout">{escape(text)}</p>')


def columns(*parts: Html) -> Html:
    """Parts side by side, as many as fit."""
    return Html(f'<div class="columns">{join(parts)}</div>')


def details(summary: str, *parts: Html) -> Html:
    """Folded until clicked; printed open where the browser can."""
    return Html(f"<details><summary>{escape(summary)}</summary>{join(parts)}</details>")


def key_figures(figures: Iterable[Figure]) -> Html:
    items = (
        f"<div><dt>{escape(figure.label)}</dt><dd>{escape(number(figure.value))}</dd>"
        f"<p>{escape(figure.note)}</p></div>"
        for figure in figures
    )
    return Html(f'<dl class="figures">{"".join(items)}</dl>')


def table(header: Sequence[str], rows: Iterable[Sequence[Cell | Html]]) -> Html:
    """A column is set to the right if all of its cells are numbers; a header of nothing is left out."""
    body = [list(row) for row in rows]
    numeric = [
        bool(body) and all(not isinstance(row[i], str) for row in body) for i in range(len(header))
    ]
    kinds = [' class="number"' if right else "" for right in numeric]
    names = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header))
    head = f"<thead><tr>{names}</tr></thead>" if any(header) else ""
    lines = (
        "".join(
            f"<td{kind}>{cell if isinstance(cell, Html) else escape(number(cell))}</td>"
            for kind, cell in zip(kinds, row)
        )
        for row in body
    )
    filled = "".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f'<div class="table"><table>{head}<tbody>{filled}</tbody></table></div>')


def legend(entries: Iterable[tuple[Html, str]]) -> Html:
    """Names beside their swatches."""
    items = (f"<li>{swatch}{escape(name)}</li>" for swatch, name in entries)
    return Html(f'<ul class="legend">{"".join(items)}</ul>')


def mark_legend(names: Mapping[MarkKind, str] = MARK_NAMES) -> Html:
    return legend((mark_swatch(kind), name) for kind, name in names.items())


def mark_swatch(kind: MarkKind) -> Html:
    return Html(f'<i class="swatch mark {kind}"></i>')


def contact_sheet(pictures: Iterable[Picture], row_height_px: int = 150) -> Html:
    """Pictures in rows of about one height, whatever their shapes, with their marks drawn over."""
    return sheet(_picture(p, row_height_px) for p in pictures)


def sheet(figures: Iterable[Html]) -> Html:
    """Figures in rows, as many as fit."""
    return Html(f'<div class="sheet">{join(figures)}</div>')


def side_by_side(views: Sequence[Picture], row_height_px: int, *below: Html) -> Html:
    """Views of one image. Pointing at a linked mark or chip lights up its like."""
    aspect = sum(picture.width / picture.height for picture in views)
    return Html(
        f'<figure class="pair" style="flex:{aspect:.3f} 1 {aspect * row_height_px:.0f}px">'
        f'<div class="views">{join(map(_frame, views))}</div>'
        f"<figcaption>{join(below)}</figcaption></figure>"
    )


def chip(link: int, label: str, note: str = "") -> Html:
    """The label in the colour of the marks with the same link, and what is to be said of it."""
    return Html(
        f'<span class="chip"><b class="{_link(link)}">{escape(label)}</b>{escape(note)}</span>'
    )


def sample_picture(
    annotation: Annotation, image: bytes, image_type: str, height_px: int = 320
) -> Picture:
    """A stored sample as a small picture with its persons, identities and ignore regions.

    Raises DecodeError if the image cannot be decoded.
    """
    kinds: list[MarkKind] = [
        "ignore" if person.ignore else "identity" if person.identity else "unlabelled"
        for person in annotation.persons
    ]
    marks = tuple(
        Mark(person.box, kind, person.identity or "")
        for person, kind in zip(annotation.persons, kinds)
    )
    name = annotation.key.removeprefix(f"{annotation.dataset}/{annotation.split}/")
    small = thumbnail(image, image_type, height_px)
    return Picture(small, annotation.width, annotation.height, marks, name)


def thumbnail(image: bytes, image_type: str, height_px: int) -> bytes:
    """A JPEG at most `height_px` high. Raises DecodeError."""
    height, width = image_size(image, image_type)
    halvings = min(MOST_HALVINGS, max(0, int(math.log2(height / height_px))))
    pixels = decode(image, image_type, halvings)
    if height > height_px:
        size = max(1, round(width * height_px / height)), height_px
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 82, "RGB", "420")


def _lead(text: str) -> str:
    return f'<p class="lead">{escape(text)}</p>' if text else ""


def _picture(picture: Picture, row_height_px: int) -> Html:
    aspect = picture.width / picture.height
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return Html(
        f'<figure style="flex:{aspect:.3f} 1 {aspect * row_height_px:.0f}px">'
        f"{_frame(picture)}{caption}</figure>"
    )


def _frame(picture: Picture) -> Html:
    aspect = picture.width / picture.height
    source = "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode()
    return Html(
        f'<div class="frame" style="flex:{aspect:.3f} 1 0;aspect-ratio:{aspect:.4f}">'
        f'<img src="{source}" alt="{escape(picture.caption)}">{_padding(picture)}'
        f"{join(_mark(mark, picture) for mark in picture.marks)}</div>"
    )


def _padding(picture: Picture) -> Html:
    """Right of the content, and below it."""
    width, height = picture.content or (picture.width, picture.height)
    x, y = 100 * width / picture.width, 100 * height / picture.height
    places = []
    if width < picture.width:
        places.append(f"left:{x:.2f}%;top:0;right:0;bottom:0")
    if height < picture.height:
        places.append(f"left:0;top:{y:.2f}%;width:{x:.2f}%;bottom:0")
    return Html("".join(f'<i class="padding" style="{place}"></i>' for place in places))


def _mark(mark: Mark, picture: Picture) -> Html:
    x1, y1, x2, y2 = mark.box
    left, right = (100 * min(max(x / picture.width, 0), 1) for x in (x1, x2))
    top, bottom = (100 * min(max(y / picture.height, 0), 1) for y in (y1, y2))
    if right <= left or bottom <= top:
        return Html("")
    inward = ' class="left"' if left + right > 100 else ""  # labels grow towards the middle
    label = f"<span{inward}>{escape(mark.label)}</span>" if mark.label else ""
    link = "" if mark.link is None else f" {_link(mark.link)}"
    return Html(
        f'<b class="mark {mark.kind}{link}" style="left:{left:.2f}%;top:{top:.2f}%;'
        f'width:{right - left:.2f}%;height:{bottom - top:.2f}%">{label}</b>'
    )


def _link(number: int) -> str:
    """Classes; see `LINK_STYLE`."""
    return f"link k{number % len(MARK_COLOURS)} q{number}"
