"""The page of a search: who was asked for, and who was found, most similar first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.evaluation.crops import crop_picture
from launch.evaluation.looking import Hit, in_words, read_picture, shown
from pipeline.annotation import Box
from pipeline.pages import page
from pipeline.pages.page import Cell, Html, Picture
from pipeline.rendering.decode import Pixels
from training.evaluation.weights import Weights

ROW_HEIGHT_PX = 240


def query_picture(file: Path, pixels: Pixels, box: Box) -> Picture:
    caption = f"{shown(Path(file.name))}:{in_words(box)}"
    return crop_picture(pixels, box, "identity", "query", caption)


def result_page(
    weights: Weights,
    asked: Picture,
    gallery: Path,
    hits: Sequence[Hit],
    searched: int,
    problems: Mapping[Path, str],
) -> str:
    """Files of the gallery are named as they lie in it."""
    parts = [page.block("Searched for", page.contact_sheet([asked], ROW_HEIGHT_PX))]
    if hits:
        found = page.contact_sheet(
            (_picture(n, hit, gallery) for n, hit in enumerate(hits, 1)), ROW_HEIGHT_PX
        )
        lead = "The most similar first, with similarity times the probability of a person."
        rows: list[list[Cell | Html]] = [
            [place, hit.similarity, hit.score, in_words(hit.box), _name(hit.file, gallery)]
            for place, hit in enumerate(hits, 1)
        ]
        header = ["", "similarity", "person", "box", "file"]
        listed = page.details("As a table", page.table(header, rows))
        parts.append(page.block("Found", found, listed, lead=lead))
    else:
        parts.append(page.callout("Nobody was found in any of the pictures."))
    if problems:
        faults: list[list[Cell | Html]] = [
            [_name(file, gallery), problem] for file, problem in problems.items()
        ]
        parts.append(
            page.block("Pictures that could not be read", page.table(["file", "why"], faults))
        )
    trained = f"weights of {weights.trained.name} at step {weights.trained.step:,}"
    subtitle = f"{searched:,} pictures in {shown(gallery)}, {trained}"
    return page.document("Person search", subtitle, [page.section("Results", *parts)])


def _name(file: Path, gallery: Path) -> str:
    return shown(file.relative_to(gallery))


def _picture(place: int, hit: Hit, gallery: Path) -> Picture:
    label = f"{place}: {hit.similarity:.2f}"
    return crop_picture(read_picture(hit.file), hit.box, "detect", label, _name(hit.file, gallery))
