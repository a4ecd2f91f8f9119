"""Find a person in your own pictures:

python launch/search.py --weights RUN --query street.jpg:120,40,180,230 --gallery photos/ --out page.html

The box is x1,y1,x2,y2 in pixels of the picture. Without one, the most confident person in it is searched.
"""

import argparse
import re
from pathlib import Path

from launch.evaluation.found_page import result_page
from launch.evaluation.looking import Looker, in_words, list_pictures, look_through, read_query
from launch.evaluation.ranks import choose_device, make_folder
from pipeline.annotation import Box
from pipeline.errors import UserError, run_command
from training.evaluation.weights import load_weights
from training.files import write_atomically

BOX = re.compile(r"(?P<path>.+):(?P<box>[-\d.]+(?:,[-\d.]+){3})")
SMALLEST_SIDE = 4.0
"""Pixels of a box to search."""


def parse_arguments() -> argparse.Namespace:
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument(
        "--weights", required=True, help="run folder, or RUN/checkpoints/step-* for one of it"
    )
    parser.add_argument("--query", required=True, metavar="IMG[:x1,y1,x2,y2]")
    parser.add_argument("--gallery", required=True, help="folder of pictures, with those below it")
    parser.add_argument("--out", default="search.html", help="default: search.html")
    parser.add_argument("--top", type=int, default=20, help="people to show; default: 20")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("SHORT", "LONG"), help="default: as in training"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    query, box = parse_query(arguments.query)
    files = list_pictures(Path(arguments.gallery))
    pixels, out = read_query(query), Path(arguments.out)
    make_folder(out.parent)
    weights = load_weights(arguments.weights)
    weights.model.to(choose_device())
    short, long = sorted(arguments.size or weights.size)
    looker = Looker(weights, (short, long))
    chosen, embedding = looker.choose(pixels, box, query)
    if box is None:
        print(f"searching for the most confident person in {query}, at {in_words(chosen)}")
    hits, problems = look_through(looker, embedding, files, query)
    hits = sorted(hits, key=lambda hit: (-hit.similarity, hit.file, hit.box))[: arguments.top]
    write_atomically(out, result_page(weights, query, pixels, chosen, hits, len(files), problems))
    for place, hit in enumerate(hits[:5], 1):
        print(f"{place}. {hit.similarity:.3f}  {hit.file}  {in_words(hit.box)}")
    for file, problem in problems.items():
        print(f"not read: {file}: {problem}")
    print(out)


def parse_query(text: str) -> tuple[Path, Box | None]:
    """Raises UserError."""
    if Path(text).is_file():
        return Path(text), None
    match = BOX.fullmatch(text)
    if match is None:
        raise UserError(
            f"--query {text}: there is no such file. Write it as IMG, or as IMG:x1,y1,x2,y2 for one person."
        )
    if not Path(match["path"]).is_file():
        raise UserError(f"--query {text}: there is no file {match['path']}.")
    try:
        x1, y1, x2, y2 = (float(number) for number in match["box"].split(","))
    except ValueError:
        raise UserError(
            f"--query {text}: {match['box']} are not four numbers x1,y1,x2,y2."
        ) from None
    if min(x2 - x1, y2 - y1) < SMALLEST_SIDE:
        raise UserError(
            f"--query {text}: the box is {x2 - x1:g} wide and {y2 - y1:g} high. Write left, top, right "
            "and bottom in pixels, not a width and height."
        )
    return Path(match["path"]), (x1, y1, x2, y2)


if __name__ == "__main__":
    run_command(main)
