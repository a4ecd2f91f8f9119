"""The page of a search: who was asked for, and who was found, most similar first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.evaluation.crops import crop_picture
from launch.evaluation.looking import Hit, in_words, read_picture
from pipeline.annotation import Box
from pipeline.pages import page
from pipeline.pages.page import Cell, Html, Picture
from pipeline.rendering.decode import Pixels
from training.evaluation.weights import Weights

ROW_HEIGHT_PX = 240


def result_page(
    weights: Weights,
    query: Path,
    pixels: Pixels,
    box: Box,
    hits: Sequence[Hit],
    searched: int,
    problems: Mapping[Path, str],
) -> str:
    asked = crop_picture(pixels, box, "identity", "query", f"{query.name}:{in_words(box)}")
    parts = [page.block("Searched for", page.contact_sheet([asked], ROW_HEIGHT_PX))]
    if hits:
        found = page.contact_sheet(
            (_picture(n, hit) for n, hit in enumerate(hits, 1)), ROW_HEIGHT_PX
        )
        lead = "The most similar first, with similarity times the probability of a person."
        rows: list[list[Cell | Html]] = [
            [place, hit.similarity, hit.score, in_words(hit.box), str(hit.file)]
            for place, hit in enumerate(hits, 1)
        ]
        header = ["", "similarity", "person", "box", "file"]
        listed = page.details("As a table", page.table(header, rows))
        parts.append(page.block("Found", found, listed, lead=lead))
    else:
        parts.append(page.callout("Nobody was found in any of the pictures."))
    if problems:
        faults: list[list[Cell | Html]] = [
            [str(file), problem] for file, problem in problems.items()
        ]
        parts.append(
            page.block("Pictures that could not be read", page.table(["file", "why"], faults))
        )
    subtitle = f"{searched:,} pictures, weights of {weights.run} at step {weights.step:,}"
    return page.document("Person search", subtitle, [page.section("Results", *parts)])


def _picture(place: int, hit: Hit) -> Picture:
    label = f"{place}: {hit.similarity:.2f}"
    return crop_picture(read_picture(hit.file), hit.box, "detect", label, str(hit.file))
