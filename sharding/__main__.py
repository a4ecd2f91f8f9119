"""python -m sharding write | verify | inspect | forget | miniature: each a few lines over its room."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, run_command
from pipeline.filters import read_names
from pipeline.options import positive
from pipeline.shards import DamagedManifest, ShardSet
from pipeline.stores.store import Location
from sharding.datasets import ADAPTERS
from sharding.destination import check_destination
from sharding.miniature import MiniatureConfig
from sharding.miniature import write as write_miniature
from sharding.plan import PlanConfig
from sharding.recipe import (
    SetRequest,
    absolute,
    find,
    load_recipe,
    make_request,
    parse_settings,
    refuse_recode,
)

VERIFIED_ALONE_BYTES = 1 << 30
"""Ray takes longer to start than this takes to verify."""


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (
        OSError
    ) as error:  # a path's, a disk's or a store's fault, which a traceback explains no better
        raise UserError(f"{type(error).__name__}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sharding", description="Native releases -> shards."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_write(commands.add_parser("write", help="write shard sets; run again, it continues"))
    _add_care(commands)
    miniature = commands.add_parser("miniature", help="generate look-alikes of the native releases")
    miniature.add_argument("folder", metavar="DIR", type=Path)
    miniature.add_argument("--seed", type=int, default=0)
    miniature.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    miniature.set_defaults(command=_miniature)
    return parser


def _add_write(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a recipe of several sets")
    parser.add_argument(
        "--only", action="append", default=[], metavar="SET", help="of the recipe; again for more"
    )
    parser.add_argument("--dataset", metavar="NAME")
    parser.add_argument("--source", metavar="PATH_OR_URL", help="the release, or its archives")
    parser.add_argument("--out", metavar="URL", help="of the set; of several splits, their parent")
    parser.add_argument("--split", action="append", metavar="S", help="default: every split")
    parser.add_argument("--workers", type=positive, metavar="N", help="default: every core")
    parser.add_argument(
        "--check", choices=("full", "header"), help="decode every image once, or not"
    )
    parser.add_argument("--recode", metavar="jpeg:Q", help="store scenes as JPEG of quality Q")
    parser.add_argument("--max-side", type=positive, metavar="N", help="with --recode: reduce")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    parser.add_argument(
        "--retry-quarantined", action="store_true", help="try again what could not be used"
    )
    parser.add_argument("--summary", metavar="URL", help="where to write the run's summary as JSON")
    parser.set_defaults(command=_write)


def _add_care(commands: Any) -> None:
    verify = commands.add_parser("verify", help="re-read a shard set and prove it whole")
    verify.add_argument("url")
    verify.add_argument("--workers", type=positive, metavar="N", help="default: every core")
    verify.set_defaults(command=_verify)
    inspect = commands.add_parser("inspect", help="a page to look at before spending GPU weeks")
    inspect.add_argument("url")
    inspect.add_argument("--out", required=True, metavar="PAGE.html", type=Path)
    inspect.set_defaults(command=_inspect)
    forget = commands.add_parser("forget", help="remove people from a shard set")
    forget.add_argument("url")
    forget.add_argument("--identities", metavar="FILE", help="one a line")
    forget.add_argument("--keys", metavar="FILE", help="of samples, one a line")
    forget.set_defaults(command=_forget)


def _write(options: argparse.Namespace) -> None:
    if options.dry_run and options.summary:
        raise UserError(
            "--summary is of what was written, and --dry-run writes nothing: leave one out."
        )
    requests, workers = _requests(options)
    # Ray takes seconds to import; the other commands do without.
    from sharding.job import ShardsFailed, prepare_sets, write_sets
    from sharding.summary import plan_report, run_summary, table_lines, written_lines

    if options.dry_run:
        cores = workers or len(os.sched_getaffinity(0))
        for line in plan_report(prepare_sets(requests, options.retry_quarantined), cores):
            print(line, flush=True)
        return
    summary = Location(absolute(options.summary)) if options.summary else None
    if summary is not None:
        check_destination(summary.parent())
    outcomes = write_sets(requests, workers, options.retry_quarantined)
    for outcome in outcomes:
        print("".join(f"{line}\n" for line in outcome.notes), end="")
        if outcome.manifest is not None:
            print("\n".join(written_lines(outcome.manifest, outcome.request.out)))
    if any(outcome.manifest for outcome in outcomes):
        print("\n".join(table_lines(outcomes)))
    if summary is not None:
        summary.write(run_summary(outcomes))
    if errors := [outcome.error for outcome in outcomes if outcome.error]:
        raise ShardsFailed(" ".join(errors))


def _requests(options: argparse.Namespace) -> tuple[list[SetRequest], int | None]:
    """What to write, and the number of workers."""
    single = {"--dataset": options.dataset, "--source": options.source, "--out": options.out}
    if options.config:
        if given := [name for name, value in {**single, "--split": options.split}.items() if value]:
            raise UserError(f"{given[0]} is not used with --config: write --set KEY=VALUE instead.")
        settings = [f"defaults.{setting}" for setting in _settings(options)]
        recipe = load_recipe(options.config, [*options.set, *settings])
        return recipe.requests(options.only), options.workers or recipe.workers
    if options.only:
        raise UserError("--only names sets of a recipe: it is used with --config.")
    if absent := [name for name, value in single.items() if not value]:
        raise UserError(f"write needs {', '.join(absent)}, or --config FILE.")
    config = parse_settings(PlanConfig, [*options.set, *_settings(options)])
    adapter = find(ADAPTERS, options.dataset, "dataset")
    refuse_recode(adapter, config)
    splits = options.split or list(adapter.splits)
    out = options.out.rstrip("/")
    outs = [out if len(splits) == 1 else f"{out}/{split}" for split in splits]
    return [
        make_request(options.dataset, options.source, split, out, config)
        for split, out in zip(splits, outs, strict=True)
    ], options.workers


def _settings(options: argparse.Namespace) -> list[str]:
    """Settings that have an option of their own, as `key=value`."""
    given = {"check": options.check, "recode": options.recode, "max_side": options.max_side}
    return [f"{name}={value}" for name, value in given.items() if value is not None]


def _verify(options: argparse.Namespace) -> None:
    from sharding.cluster import ray_session
    from sharding.upkeep.verify import verify  # brings webdataset and with it torch

    url = absolute(options.url)  # workers may run in another folder
    try:
        tar_bytes = sum(shard.tar_bytes for shard in ShardSet(url).manifest.shards)
    except DamagedManifest as error:
        print(f"{url}: DAMAGED.\n{error}")
        sys.exit(1)
    alone = options.workers == 1 or (options.workers is None and tar_bytes < VERIFIED_ALONE_BYTES)
    if alone:
        report = verify(url)
    else:
        with ray_session(options.workers) as cluster:
            report = verify(url, cluster.map)
    print("\n".join(report.lines()))
    sys.exit(1 if report.problems else 0)


def _inspect(options: argparse.Namespace) -> None:
    from sharding.upkeep.inspection import inspect

    check_destination(Location(absolute(str(options.out))).parent())
    options.out.write_text(inspect(options.url), encoding="utf-8")
    print(f"wrote {options.out}")


def _forget(options: argparse.Namespace) -> None:
    from sharding.upkeep.forget import forget

    if not options.identities and not options.keys:
        raise UserError("forget needs --identities FILE or --keys FILE.")
    identities = read_names(options.identities) if options.identities else {}
    keys = read_names(options.keys) if options.keys else {}
    done = forget(options.url, identities, keys)
    print("\n".join(done.lines({**identities, **keys})))


def _miniature(options: argparse.Namespace) -> None:
    config = parse_settings(MiniatureConfig, [f"seed={options.seed}", *options.set])
    images = write_miniature(options.folder, config)
    print(f"{len(images):,} images of {', '.join(config.datasets)} below {options.folder}")


if __name__ == "__main__":
    run_command(main)
