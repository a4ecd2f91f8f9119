"""python -m sharding write | verify | miniature: the commands, each a few lines over its room."""

import argparse
import sys
from pathlib import Path

from pipeline.errors import UserError, run_command
from sharding.datasets import ADAPTERS
from sharding.miniature import MiniatureConfig
from sharding.miniature import write as write_miniature
from sharding.plan import PlanConfig
from sharding.prepare import prepare_sets
from sharding.recipe import SetRequest, find, load_recipe, make_request, parse_settings
from sharding.summary import plan_lines, table_lines, written_lines


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sharding", description="Native releases -> shards."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_write(commands.add_parser("write", help="write shard sets; run again, it continues"))
    verify = commands.add_parser("verify", help="re-read a shard set and prove it whole")
    verify.add_argument("url")
    verify.set_defaults(command=_verify)
    miniature = commands.add_parser("miniature", help="generate look-alikes of the native releases")
    miniature.add_argument("folder", metavar="DIR", type=Path)
    miniature.add_argument("--seed", type=int, default=0)
    miniature.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    miniature.set_defaults(command=_miniature)
    return parser


def _add_write(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a recipe of several sets")
    parser.add_argument("--dataset", metavar="NAME")
    parser.add_argument("--source", metavar="PATH", help="folder of the native release")
    parser.add_argument("--out", metavar="URL", help="of the set; of several splits, their parent")
    parser.add_argument("--split", action="append", metavar="S", help="default: every split")
    parser.add_argument("--workers", type=_positive, metavar="N", help="default: every core")
    parser.add_argument(
        "--check", choices=("full", "header"), help="decode every image once, or not"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    parser.set_defaults(command=_write)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError("not positive")
    return number


def _write(options: argparse.Namespace) -> None:
    requests, workers = _requests(options)
    if options.dry_run:
        for prepared in prepare_sets(requests):
            print("\n".join(plan_lines(prepared)))
        return
    from sharding.job import (
        write_sets,  # Ray takes seconds to import; the other commands do without
    )

    manifests = write_sets(requests, workers)
    for request, manifest in zip(requests, manifests, strict=True):
        for line in written_lines(manifest, request.out):
            print(line)
    print("\n".join(table_lines(manifests)))


def _requests(options: argparse.Namespace) -> tuple[list[SetRequest], int | None]:
    """What to write, and the number of workers."""
    single = {"--dataset": options.dataset, "--source": options.source, "--out": options.out}
    if options.config:
        if given := [name for name, value in {**single, "--split": options.split}.items() if value]:
            raise UserError(f"{given[0]} is not used with --config: write --set KEY=VALUE instead.")
        check = [f"defaults.check={options.check}"] if options.check else []
        recipe = load_recipe(options.config, [*options.set, *check])
        return recipe.requests(), options.workers or recipe.workers
    if absent := [name for name, value in single.items() if not value]:
        raise UserError(f"write needs {', '.join(absent)}, or --config FILE.")
    check = [f"check={options.check}"] if options.check else []
    config = parse_settings(PlanConfig, [*options.set, *check])
    splits = options.split or list(find(ADAPTERS, options.dataset, "dataset").splits)
    outs = [options.out if len(splits) == 1 else f"{options.out}/{split}" for split in splits]
    return [
        make_request(options.dataset, options.source, split, out, config)
        for split, out in zip(splits, outs, strict=True)
    ], options.workers


def _verify(options: argparse.Namespace) -> None:
    from sharding.verify import verify  # brings webdataset and with it torch

    try:
        report = verify(options.url)
    except OSError as error:
        raise UserError(f"{options.url} could not be read to its end: {error}") from None
    print("\n".join(report.lines()))
    sys.exit(1 if report.problems else 0)


def _miniature(options: argparse.Namespace) -> None:
    config = parse_settings(MiniatureConfig, [f"seed={options.seed}", *options.set])
    images = write_miniature(options.folder, config)
    print(f"{len(images):,} images of {', '.join(config.datasets)} below {options.folder}")


if __name__ == "__main__":
    run_command(main)
