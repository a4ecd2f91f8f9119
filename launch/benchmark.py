"""Figures of this machine against targets: python launch/benchmark.py [training|sharding|stream|order]

Without a word: training in full, sharding and the stream in small, in a few minutes; says what is absent.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from launch.benchmarks.measure import Row, as_json, markdown
from pipeline.errors import run_command


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments if arguments is not None else sys.argv[1:] or ["all"])
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as folder:
        rows = options.command(options, Path(folder))
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps(as_json(rows), indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    sharding = commands.add_parser("sharding", help="the sharding job, on generated releases")
    sharding.add_argument(
        "--planning", action="store_true", help="plan 4.2 million crops too: minutes, 2 GB of disk"
    )
    sharding.set_defaults(command=_sharding)
    stream = commands.add_parser("stream", help="the stream against its peers, on generated scenes")
    stream.set_defaults(command=_stream)
    order = commands.add_parser(
        "order", help="the stream's order alone: scale, fetching, shuffling"
    )
    order.set_defaults(command=_order)
    training = commands.add_parser("training", help="a training step, on the GPU if there is one")
    training.add_argument(
        "--sets",
        type=Path,
        metavar="DIR",
        help="shard sets `scenes` and `crops`; default: drawn ones",
    )
    training.set_defaults(command=_training)
    everything = commands.add_parser("all", help="training, and the others in small; the default")
    everything.set_defaults(command=_all, sets=None)
    for command in commands.choices.values():
        command.add_argument(
            "--json", type=Path, metavar="FILE", help="where to write them as JSON"
        )
        command.add_argument(
            "--folder", metavar="DIR", help="on the disk to be measured; default: /tmp"
        )
    return parser


def _sharding(options: argparse.Namespace, folder: Path) -> list[Row]:
    from launch.benchmarks import bench, planning, sharding  # Ray takes seconds to import

    rows = sharding.run(folder / "job", bench.FULL)
    if options.planning:
        rows += planning.planning_rows(folder / "planning", planning.COUNT)
    return rows


def _stream(options: argparse.Namespace, folder: Path) -> list[Row]:
    from launch.benchmarks import stream

    return stream.run(folder, stream.FULL)


def _order(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Prints the table of shuffles, which has columns of its own, before the figures."""
    from launch.benchmarks import catalogue, fetching, shuffling

    print(shuffling.quality_table(shuffling.FULL), end="\n\n")
    return [*catalogue.catalogue_rows(folder, catalogue.FULL), *fetching.fetching_rows()]


def _training(options: argparse.Namespace, folder: Path) -> list[Row]:
    from launch.benchmarks import training

    return training.run(folder, sets=options.sets)


def _all(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Says what cannot be measured here instead."""
    rows = []
    for name, part in (
        ("training", _training),
        ("sharding", _sharding_quick),
        ("stream", _stream_quick),
    ):
        place = folder / name
        place.mkdir()
        try:
            rows += part(options, place)
        except ImportError as error:  # Ray, say
            rows.append(Row(name, None, remark=f"not measured: {error}"))
    return rows


def _sharding_quick(options: argparse.Namespace, folder: Path) -> list[Row]:
    from launch.benchmarks import bench, sharding

    return sharding.run(folder, bench.QUICK)


def _stream_quick(options: argparse.Namespace, folder: Path) -> list[Row]:
    from launch.benchmarks import stream

    return stream.run(folder, stream.QUICK)


if __name__ == "__main__":
    run_command(main)
