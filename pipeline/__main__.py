"""python -m pipeline prove-resume | at | look | select | index: the stream, without a trainer."""

import argparse
import sys
from pathlib import Path
from typing import Any

from pipeline.config import apply_override, load_config, parse_config
from pipeline.errors import UserError, run_command
from pipeline.foreign.command import add_index
from pipeline.options import positive, whole
from pipeline.select import SelectConfig, select
from pipeline.settings import MIXTURE_KEYS, StreamConfig
from pipeline.shards import ShardSet


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prove(commands.add_parser("prove-resume", help="prove that the stream resumes exactly"))
    _add_at(commands.add_parser("at", help="show which sample comes at a position"))
    _add_look(commands.add_parser("look", help="a page of batches, before spending GPU weeks"))
    _add_select(commands.add_parser("select", help="choose samples of a shard set by a filter"))
    add_index(commands.add_parser("index", help="make a shard set of another tool's tars"))
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    """The options by which a command finds its stream; `_config` reads them."""
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="RUN.yaml",
        help="a run file, as the trainer takes it",
    )
    parser.add_argument("--section", default="stream", help="of the file (default: stream)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the file, such as stream.seed=1; may be given again",
    )


def _config(options: argparse.Namespace) -> StreamConfig:
    for setting in options.set:
        if setting.partition("=")[0].partition(".")[0] != options.section:
            raise UserError(
                f"--set {setting}: this command reads `{options.section}:` alone, so it would have no "
                f"effect; write it as {options.section}.key=value."
            )
    return load_config(StreamConfig, options.config, options.set, options.section)


def _add_prove(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Streams some steps undisturbed, then again with a cut in the middle after which other ranks go on, "
        "and compares every sample. Prints EXACT and a digest, or DIFFERENT and where, and exits with 1. "
        "From step 0 on, the digest is the sample_digest that metrics.jsonl has after as many steps (without "
        "--pixels: if no sample had to be replaced). No trainer, no GPU."
    )
    _add_config(parser)
    parser.add_argument("--steps", type=int, default=100, help="steps of the run (default: 100)")
    parser.add_argument(
        "--start", type=whole, default=0, metavar="STEP", help="its first step (default: 0)"
    )
    parser.add_argument(
        "--pixels",
        action="store_true",
        help="decode, and compare pixels, boxes and all else that batches hold; slower",
    )
    parser.set_defaults(command=_prove)


def _prove(options: argparse.Namespace) -> None:
    """Prints the verdict; exits with 1 if the two runs differ."""
    from pipeline.prove import prove_resume

    if options.steps < 2:
        raise UserError("--steps must be at least 2: there is nothing to cut in a single step.")
    steps = range(options.start, options.start + options.steps)
    proof = prove_resume(_config(options), steps, options.pixels)
    alone, before, after = proof.layouts
    print(f"stream       {proof.stream_digest}")
    print(f"undisturbed  {alone}, steps {steps[0]} to {steps[-1]}, {proof.samples:,} samples")
    print(f"interrupted  {before} up to step {proof.cut - 1},")
    print(f"             {after} from step {proof.cut} on")
    if proof.difference is not None:
        print(f"DIFFERENT    first at {proof.difference[0]} against {proof.difference[1]}")
        sys.exit(1)
    seen = "all that batches hold" if options.pixels else "ids"
    print(f"EXACT        {seen}, {proof.samples_digest}")


def _add_at(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Names the sample that comes at a position, the place where it is stored, and what stands in for it "
        "if it cannot be used. Positions count scenes and canvases apart; step S begins at S x batch."
    )
    _add_config(parser)
    parser.add_argument("--position", type=whole, required=True, metavar="N", help="from 0")
    parser.add_argument(
        "--task", choices=("scenes", "canvases"), help="default: both, which count apart"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PAGE.html", help="a page with the stored image and its views"
    )
    parser.set_defaults(command=_at)


def _at(options: argparse.Namespace) -> None:
    from pipeline.pages.where import locate, where_page
    from pipeline.stream import Stream

    _check_page(options.out)
    stream = Stream.open(_config(options))
    tasks = [task for task in stream.tasks if options.task in (None, MIXTURE_KEYS[task])]
    if not tasks:
        raise UserError(f"--task {options.task}: the stream has none, its batch of them is 0.")
    found = [locate(stream, task, options.position) for task in tasks]
    for one in found:
        name, image = MIXTURE_KEYS[one.image.task], one.image
        print(f"{name:10} step {image.step}, position {image.position}")
        print("".join(f"  {fact:10} {value}\n" for fact, value in one.facts()), end="")
    if options.out:
        _write_page(options.out, where_page(stream, found, _origin(options)))


def _add_look(parser: argparse.ArgumentParser) -> None:
    from pipeline.pages.look import MOST_PAGE_BYTES

    parser.description = (
        "Makes a page of whole global batches as the trainer gets them: the views of an image side by "
        "side, with boxes, what each person is used for, identities and where the image came from; and "
        "numbers of all images of these steps. The page needs no network and has at most about "
        f"{MOST_PAGE_BYTES // 1_000_000} MB: images beyond that are counted, not shown."
    )
    _add_config(parser)
    parser.add_argument("--step", type=whole, default=0, metavar="N", help="the first (default: 0)")
    parser.add_argument(
        "--steps", type=positive, default=1, metavar="K", help="how many (default: 1)"
    )
    parser.add_argument(
        "--images",
        type=positive,
        default=12,
        metavar="M",
        help="of scenes, and of canvases, that are shown in a step (default: 12)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE.html")
    parser.set_defaults(command=_look)


def _look(options: argparse.Namespace) -> None:
    from pipeline.pages.look import Gallery
    from pipeline.pages.look_page import look_page
    from pipeline.stream import Stream

    _check_page(options.out)
    gallery = Gallery(Stream.open(_config(options)), options.images)
    gallery.gather(options.step, options.steps)
    _write_page(options.out, look_page(gallery, _origin(options)))


def _check_page(out: Path | None) -> None:
    """Before the work is done."""
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}.")


def _write_page(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}.") from None
    print(f"wrote {out}, {len(text) / 1e6:.1f} MB")


def _origin(options: argparse.Namespace) -> str:
    """Where a page's stream is defined."""
    names = [setting.partition("=")[0] for setting in options.set]
    changed = f", with --set {', '.join(names)}" if names else ""
    return f"{options.section} of {options.config}{changed}"


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", metavar="URL", help="of the shard set")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="for `selection:` of an entry of the mixture"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FILTER=VALUE",
        help=f"one of {', '.join(SelectConfig.model_fields)}; all that are given must hold",
    )
    parser.set_defaults(command=_select)


def _select(options: argparse.Namespace) -> None:
    tree: dict[str, Any] = {}
    for override in options.set:
        apply_override(tree, override)
    shard_set = ShardSet(options.shards)
    selection = select(shard_set, parse_config(SelectConfig, tree, "--set"))
    try:
        digest = selection.write(options.out)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror or error}.") from None
    chosen, all_of_them = sum(selection.counts), sum(selection.slots)
    print(
        f"{chosen:,} of {all_of_them:,} samples of {shard_set.url}: {options.out} ({digest[:16]})"
    )


if __name__ == "__main__":
    run_command(main)
