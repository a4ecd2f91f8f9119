"""The page about an evaluation: its numbers, what limits them, and the best and worst queries as pictures."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from launch.evaluation.crops import crop_picture
from pipeline.annotation import Box
from pipeline.pages import page, plot
from pipeline.pages.page import Cell, Figure, Html, Picture
from pipeline.rendering.decode import DecodeError, Pixels, decode
from pipeline.samples import BadSample, SampleReader
from training.evaluation.results import Outcome, Searched
from training.evaluation.search import TOP

SHOWN_QUERIES = 8
"""Of the best, and of the worst."""
SHOWN_ANSWERS = 5
SHOWN_FAULTS = 20
ROW_HEIGHT_PX = 190
MAIN_PROTOCOL = "TestG100"
"""Of CUHK-SYSU: the gallery that papers report."""


def report(
    results: Mapping[str, Any],
    found: Outcome,
    reader: SampleReader,
    warnings: Sequence[str],
) -> str:
    main = next((p for p in found.protocols if p.name == MAIN_PROTOCOL), found.protocols[0])
    weights, data = results["weights"], results["data"]
    title = f"Person search: {weights['run']} on {data['dataset']}"
    subtitle = f"step {weights['step']:,}, {data['dataset']}/{data['split']}"
    pictures = _Pictures(found, reader)
    return page.document(
        title,
        subtitle,
        [
            _in_short(results, main, warnings),
            _protocols(results),
            _queries("Worst queries", main, _worst(main), pictures),
            _queries("Best queries", main, _best(main), pictures),
            _made_of(results),
        ],
    )


def _in_short(results: Mapping[str, Any], main: Searched, warnings: Sequence[str]) -> Html:
    one, detection = results["search"][main.name], results["detection"]["all"]
    figures = [
        Figure(_percent(one["mAP"]), "mAP, %", main.name),
        *(Figure(_percent(one[f"top{k}"]), f"top-{k}, %", main.name) for k in TOP[:2]),
        Figure(one["queries"], "queries", f"{one['places']:,} places to find them at"),
        Figure(_percent(detection["recall"]), "people detected, %", "score 0.01, IoU 0.5"),
        Figure(_percent(detection["ap"]), "detection AP, %", "times recall, as is custom"),
    ]
    notes = [page.callout(warning[0].upper() + warning[1:]) for warning in warnings]
    return page.section("In short", *notes, page.key_figures(figures))


def _protocols(results: Mapping[str, Any]) -> Html:
    search = results["search"]
    ranked = ("mAP", *(f"top{k}" for k in TOP))
    rows: list[list[Cell | Html]] = []
    for name, one in search.items():
        rows.append([name, one["queries"], *(_percent(one[key]) for key in (*ranked, "recall"))])
        alone = (_percent(one["annotated_boxes"][key]) for key in ranked)
        rows.append([f"{name}, annotated boxes", None, *alone, None])
    header = ["protocol", "queries", "mAP", *(f"top-{k}" for k in TOP), "found at all"]
    detection = [
        [name, _percent(one["recall"]), _percent(one.get("ap")), one["people"], one["detections"]]
        for name, one in results["detection"].items()
    ]
    names = {"all": "everybody", "labelled": "people with an identity"}
    names["searched"] = "everybody, by the detections that are searched"
    for row in detection:
        row[0] = names[row[0]]
    return page.section(
        "Numbers",
        page.block(
            "Search",
            page.table(header, rows),
            *_gallery_sizes(search),
            lead="In percent. A query cannot be found where nobody is detected: `found at all` bounds mAP. "
            "With annotated boxes in place of detections: what re-identification alone reaches.",
        ),
        page.block(
            "Detection",
            page.table(["of", "recall", "AP", "people", "detections"], detection),
            lead="In percent, at an IoU of a half.",
        ),
    )


def _gallery_sizes(search: Mapping[str, Any]) -> list[Html]:
    sizes = {name: name.removeprefix("TestG") for name in search if name.startswith("TestG")}
    if len(sizes) < 2:
        return []
    kinds = {"mAP": "mAP", "top1": "top-1"}
    groups = {
        shown: [_percent(search[name][key]) or 0.0 for name in sizes]
        for key, shown in kinds.items()
    }
    return [page.columns(plot.bar_chart("Size of the gallery", [*sizes.values()], groups))]


def _worst(main: Searched) -> list[int]:
    counted = np.flatnonzero(main.result.counted)
    return counted[np.argsort(main.result.ap[counted], kind="stable")][:SHOWN_QUERIES].tolist()


def _best(main: Searched) -> list[int]:
    """Of equals, those that are seen most often."""
    result = main.result
    counted = np.flatnonzero(result.counted & (result.ap > 0))
    order = np.lexsort((-result.found[counted], -result.ap[counted]))
    return counted[order][:SHOWN_QUERIES].tolist()


def _queries(title: str, main: Searched, chosen: Sequence[int], pictures: "_Pictures") -> Html:
    blocks = [
        page.block(
            main.asked.names[query],
            page.contact_sheet(pictures.row(main, query), ROW_HEIGHT_PX),
            lead=_outcome(main, query),
        )
        for query in chosen
    ]
    lead = f"{main.name}. The query, its {SHOWN_ANSWERS} best answers, and a place that is none of them."
    return page.section(title, *blocks, lead=lead if blocks else "There is none.")


def _outcome(main: Searched, query: int) -> str:
    result = main.result
    rank, ap = int(result.rank[query]), 100 * result.ap[query]
    first = f"the first right one comes {_ordinal(rank)}" if rank else "none is right"
    return f"AP {ap:.1f}: found at {result.found[query]} of {result.places[query]} places, {first}."


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number:,}th"
    return f"{number:,}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


class _Pictures:
    """Cut-outs of queries and detections, out of the shard set."""

    def __init__(self, found: Outcome, reader: SampleReader) -> None:
        self._found, self._reader = found, reader
        self._places = {
            reader.key(shard, slot): (shard, slot)
            for shard, slots in enumerate(reader.slots)
            for slot in range(slots)
        }
        self._pixels = cache(self._read)

    def row(self, main: Searched, query: int) -> list[Picture]:
        """The query, its first answers, and a place that is not among them."""
        self._pixels.cache_clear()
        asked = main.asked
        pictures = [self._cut(int(asked.image[query]), asked.boxes[query], "identity", "query")]
        answers = main.search.best(query, SHOWN_ANSWERS)
        images = self._found.searched.image()
        for answer in answers:
            kind = "right" if answer.right else "wrong"
            box = tuple(self._found.searched.boxes[answer.row].tolist())
            label = f"{kind} {answer.similarity:.2f}"
            pictures.append(self._cut(int(images[answer.row]), box, kind, label))
        shown = {int(images[answer.row]) for answer in answers if answer.right}
        for place in np.flatnonzero(asked.query == query):
            if int(asked.place_image[place]) not in shown:
                box = tuple(asked.place_boxes[place].tolist())
                pictures.append(self._cut(int(asked.place_image[place]), box, "match", "is here"))
                break
        return [picture for picture in pictures if picture is not None]

    def _cut(self, image: int, box: Box, kind: Any, label: str) -> Picture | None:
        key = self._found.images.keys[image]
        pixels = self._pixels(key)
        if pixels is None:
            return None
        return crop_picture(pixels, box, kind, label, key.split("/", 2)[-1])

    def _read(self, key: str) -> Pixels | None:
        try:
            _, image, image_type = self._reader.read(0, *self._places[key])
            return decode(image, image_type)
        except (BadSample, DecodeError, KeyError):
            return None


def _made_of(results: Mapping[str, Any]) -> Html:
    flat = {
        f"{group}: {name}": str(value)
        for group in ("weights", "data", "settings", "environment")
        for name, value in results[group].items()
    }
    faults = results["images"]["unreadable"]
    parts = [
        page.details("Weights, data, settings, versions", page.table(["", ""], [*flat.items()]))
    ]
    if faults:
        rows = [[one["key"], one["reason"]] for one in faults[:SHOWN_FAULTS]]
        more = len(faults) - len(rows)
        parts.append(page.block("Images that could not be read", page.table(["key", "why"], rows)))
        parts += [page.paragraph(f"and {more:,} more in results.json")] if more else []
    return page.section("What was evaluated", *parts)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
