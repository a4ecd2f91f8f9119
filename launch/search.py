"""Find a person in your own pictures:

python launch/search.py --weights RUN --query street.jpg:120,40,180,230 --gallery photos/ --out page.html

The box is x1,y1,x2,y2 in pixels of the picture. Without one, the most confident person in it is searched.
"""

import argparse
from pathlib import Path

import numpy as np

from launch.evaluation.found_page import query_picture, result_page
from launch.evaluation.looking import (
    Looker,
    in_words,
    list_pictures,
    look_through,
    read_query,
    shown,
)
from launch.evaluation.outputs import prepare_page
from pipeline.annotation import Box
from pipeline.errors import UserError, run_command
from pipeline.options import positive
from pipeline.rendering.decode import Pixels
from training.device import inference_device
from training.evaluation.detections import write_whole
from training.evaluation.weights import WEIGHTS_HELP, load_weights

SMALLEST_SIDE = 4.0
"""Pixels of a box to search."""


def parse_arguments() -> argparse.Namespace:
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--weights", required=True, help=WEIGHTS_HELP)
    parser.add_argument("--query", required=True, metavar="IMG[:x1,y1,x2,y2]")
    parser.add_argument("--gallery", required=True, help="folder of pictures, with those below it")
    parser.add_argument("--out", default="search.html", help="default: search.html")
    parser.add_argument("--top", type=positive, default=20, help="people to show; default: 20")
    parser.add_argument(
        "--size", type=positive, nargs=2, metavar=("SHORT", "LONG"), help="default: as in training"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    query, box = parse_query(arguments.query)
    gallery, out = Path(arguments.gallery), Path(arguments.out)
    files = list_pictures(gallery)
    pixels = read_query(query)
    if box is not None:
        require_inside(box, pixels, query)
    prepare_page(out)
    weights = load_weights(arguments.weights)
    weights.model.to(inference_device())
    short, long = sorted(arguments.size or weights.trained.scene_size)
    looker = Looker(weights, (short, long))
    chosen, embedding = looker.choose(pixels, box, query)
    if box is None:
        print(f"searching for the most confident person in {shown(query)}, at {in_words(chosen)}")
    hits, problems = look_through(looker, embedding, files, query)
    hits = sorted(hits, key=lambda hit: (-hit.similarity, hit.file, hit.box))[: arguments.top]
    asked = query_picture(query, pixels, chosen)
    page = result_page(weights, asked, gallery, hits, len(files), problems)
    write_whole(out, page.encode())
    for place, hit in enumerate(hits[:5], 1):
        print(f"{place}. {hit.similarity:.3f}  {shown(hit.file)}  {in_words(hit.box)}")
    for file, problem in problems.items():
        print(f"not read: {shown(file)}: {problem}")
    print(shown(out))


def parse_query(text: str) -> tuple[Path, Box | None]:
    """Raises UserError."""
    if Path(text).is_file():
        return Path(text), None
    path, colon, numbers = text.rpartition(":")
    if not colon:
        raise UserError(
            f"--query {text}: there is no such file. Write it as IMG, or as IMG:x1,y1,x2,y2 for one person."
        )
    if not Path(path).is_file():
        raise UserError(f"--query {text}: there is no file {path}.")
    try:
        x1, y1, x2, y2 = (float(number) for number in numbers.split(","))
    except ValueError:
        raise UserError(
            f"--query {text}: a box has four numbers, {path}:x1,y1,x2,y2, and these are not four numbers: "
            f"{numbers}"
        ) from None
    if not (x2 - x1 >= SMALLEST_SIDE and y2 - y1 >= SMALLEST_SIDE):
        raise UserError(
            f"--query {text}: the box is {x2 - x1:g} wide and {y2 - y1:g} high. Write left, top, right "
            "and bottom in pixels, not a width and height."
        )
    return Path(path), (x1, y1, x2, y2)


def require_inside(box: Box, pixels: Pixels, file: Path) -> None:
    """Raises UserError if too little of a box lies in its picture."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = np.clip(box, 0, [width, height, width, height])
    if min(x2 - x1, y2 - y1) < SMALLEST_SIDE:
        raise UserError(
            f"the box {in_words(box)} lies outside of {file}, or all but a sliver of it does: the picture "
            f"has {width} x {height} pixels."
        )


if __name__ == "__main__":
    run_command(main)
