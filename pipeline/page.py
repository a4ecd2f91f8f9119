"""The one HTML helper: a self-contained page of text, figures, tables and pictures with boxes.

A page needs no network and no script: pictures are data URIs, plots (`pipeline.plot`) inline SVG. A
plain `str` is text and gets escaped wherever it goes; only `Html` passes as it is.
"""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg

from pipeline.annotation import Annotation, Box
from pipeline.decode import MOST_HALVINGS, decode, image_size

Cell = str | int | float | None
MarkKind = Literal["identity", "unlabelled", "ignore"]
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


@dataclass(frozen=True)
class Picture:
    jpeg: bytes
    width: int
    """Width and height in which the marks are given; the JPEG may be smaller."""
    height: int
    marks: tuple[Mark, ...] = ()
    caption: str = ""


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
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
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
    """A column is set to the right if all of its cells are numbers."""
    body = [list(row) for row in rows]
    numeric = [
        bool(body) and all(not isinstance(row[i], str) for row in body) for i in range(len(header))
    ]
    kinds = [' class="number"' if right else "" for right in numeric]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header))
    lines = (
        "".join(
            f"<td{kind}>{cell if isinstance(cell, Html) else escape(number(cell))}</td>"
            for kind, cell in zip(kinds, row)
        )
        for row in body
    )
    filled = "".join(f"<tr>{line}</tr>" for line in lines)
    return Html(
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{filled}</tbody></table></div>"
    )


def legend(entries: Iterable[tuple[Html, str]]) -> Html:
    """Names beside their swatches."""
    items = (f"<li>{swatch}{escape(name)}</li>" for swatch, name in entries)
    return Html(f'<ul class="legend">{"".join(items)}</ul>')


def mark_legend() -> Html:
    return legend(
        (Html(f'<i class="swatch mark {kind}"></i>'), name) for kind, name in MARK_NAMES.items()
    )


def contact_sheet(pictures: Iterable[Picture], row_height_px: int = 150) -> Html:
    """Pictures in rows of about one height, whatever their shapes, with their marks drawn over."""
    return Html(f'<div class="sheet">{join(_picture(p, row_height_px) for p in pictures)}</div>')


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
    source = "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode()
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return Html(
        f'<figure style="flex:{aspect:.3f} 1 {aspect * row_height_px:.0f}px">'
        f'<div class="frame" style="aspect-ratio:{aspect:.4f}">'
        f'<img src="{source}" alt="{escape(picture.caption)}">'
        f"{join(_mark(mark, picture) for mark in picture.marks)}</div>{caption}</figure>"
    )


def _mark(mark: Mark, picture: Picture) -> Html:
    x1, y1, x2, y2 = mark.box
    left, right = (100 * min(max(x / picture.width, 0), 1) for x in (x1, x2))
    top, bottom = (100 * min(max(y / picture.height, 0), 1) for y in (y1, y2))
    if right <= left or bottom <= top:
        return Html("")
    inward = ' class="left"' if left + right > 100 else ""  # labels grow towards the middle
    label = f"<span{inward}>{escape(mark.label)}</span>" if mark.label else ""
    return Html(
        f'<b class="mark {mark.kind}" style="left:{left:.2f}%;top:{top:.2f}%;'
        f'width:{right - left:.2f}%;height:{bottom - top:.2f}%">{label}</b>'
    )


# Colours: Okabe and Ito's palette, which stays apart for colour-blind readers; dark mode lightens it.
STYLE = """
:root{--paper:#fff;--panel:#f7f7f5;--ink:#1c1d1f;--soft:#63666b;--line:#dcdcd8;--warn:#8a4b00;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#b2579a;--s4:#c98500;--s5:#3d9bd6;--s6:#6f7378}
@media screen and (prefers-color-scheme:dark){:root{--paper:#15171a;--panel:#1d2024;--ink:#e8e8e6;
--soft:#a0a4aa;--line:#34383e;--warn:#f0b861;--s0:#58b0e6;--s1:#f28b4b;--s2:#3fc79d;--s3:#e39ac8;
--s4:#efbb47;--s5:#93d0f5;--s6:#b3b7bc}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
header,main{max-width:1120px;margin:0 auto;padding:0 28px}
header{padding-top:44px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;margin:0 0 6px;font-weight:650}
header p,.lead,.figures p,figcaption{color:var(--soft)}
header p{margin:0 0 8px}
main{padding-bottom:80px}
section{margin-top:44px;border-top:1px solid var(--line);padding-top:20px}
h2{font-size:21px;margin:0 0 6px;letter-spacing:-.01em;font-weight:620}
h3{font-size:16px;margin:0 0 4px;font-weight:620}
p{margin:0 0 12px;max-width:78ch}
.block{margin-top:28px}
.callout{border-left:3px solid var(--warn);background:var(--panel);padding:10px 16px;margin:14px 0}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));
gap:26px 30px;margin:18px 0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:1px;
background:var(--line);border:1px solid var(--line);border-radius:8px;overflow:hidden;margin:18px 0}
.figures>div{background:var(--paper);padding:14px 16px;display:flex;flex-direction:column}
.figures dt{font-size:13px;color:var(--soft);order:1}
.figures dd{margin:0;font-size:25px;font-weight:620;letter-spacing:-.02em;line-height:1.25}
.figures p{order:2;margin:0;font-size:12.5px}
.figures dd,td.number{font-variant-numeric:tabular-nums}
.table{overflow-x:auto;margin:14px 0}
table{border-collapse:collapse;font-size:13.5px;min-width:min(100%,560px)}
th{text-align:left;font-weight:600;color:var(--soft);border-bottom:1px solid var(--soft)}
th,td{padding:6px 18px 6px 0;vertical-align:top;overflow-wrap:break-word}
td{border-bottom:1px solid var(--line)}
th.number,td.number{text-align:right}
details{margin:12px 0}
summary{cursor:pointer;color:var(--soft)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;padding:0;margin:4px 0 8px;
font-size:12.5px;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:6px}
.legend svg{width:22px;height:12px;flex:none}
.swatch{display:inline-block;width:18px;height:12px}
.swatch.mark{position:static}
.sheet{display:flex;flex-wrap:wrap;gap:8px;margin:12px 0}
.sheet::after{content:"";flex:1000 1 0}
.sheet figure{margin:0;min-width:0;break-inside:avoid}
.sheet figcaption{font-size:10.5px;line-height:1.35;overflow-wrap:anywhere;margin-top:3px;
width:0;min-width:100%}
.frame{position:relative;overflow:hidden;background:var(--panel);border-radius:3px}
.frame img{display:block;width:100%;height:100%}
.mark{position:absolute;border:1.5px solid;font-weight:400}
.mark.identity{border-color:#ffb000;box-shadow:0 0 0 .5px #000a}
.mark.unlabelled{border-color:#46c3ff;box-shadow:0 0 0 .5px #000a}
.mark.ignore{border:1px dashed #fff;box-shadow:0 0 0 .5px #000a;
background:repeating-linear-gradient(45deg,#0007 0 3px,#fff5 3px 6px)}
.mark span{position:absolute;left:0;top:0;font-size:9.5px;line-height:1.25;padding:0 3px;
background:#000c;color:#fff;white-space:nowrap}
.mark span.left{left:auto;right:0}
.plot{margin:0;break-inside:avoid}
.plot figcaption{color:var(--ink);font-weight:600;font-size:13.5px}
.plot .lead{font-size:12.5px;margin:2px 0 0}
.plot svg.chart{display:block;width:100%;height:auto}
.chart text{font-size:11px;fill:var(--soft)}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .axis{stroke:var(--soft);stroke-width:1}
.chart .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.chart .raw{fill:none;stroke-width:1;opacity:.28;stroke-linejoin:round}
.chart .reference{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:2 4}
.chart .value{fill:var(--ink)}
@media print{body{font-size:11pt}header,main{max-width:none;padding:0}section{break-inside:auto}
details::details-content{content-visibility:visible;block-size:auto}
table{font-size:8.5pt}th,td{padding-right:10px}
h2,h3,summary,.lead{break-after:avoid}.columns{grid-template-columns:1fr 1fr}}
"""
