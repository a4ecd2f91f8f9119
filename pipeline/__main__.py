"""`python -m pipeline prove-resume | at`: questions to a stream, without a trainer."""

import argparse
import sys
from pathlib import Path

from pipeline.config import load_config
from pipeline.errors import UserError, run_command
from pipeline.prove import prove_resume
from pipeline.settings import StreamConfig
from pipeline.stream import Stream


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    proof = commands.add_parser(
        "prove-resume", help="cut a dry run, resume it on other ranks, compare sample by sample"
    )
    proof.add_argument("--steps", type=int, default=100, help="steps of the run (default: 100)")
    proof.add_argument(
        "--pixels", action="store_true", help="decode, and compare all that batches hold"
    )
    where = commands.add_parser("at", help="which sample comes at a position")
    where.add_argument("--position", type=int, required=True)
    for command in (proof, where):
        command.add_argument("--config", type=Path, required=True, help="YAML with the stream")
        command.add_argument("--section", default="stream", help="its section (default: stream)")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting"
        )
    options = parser.parse_args(arguments)
    config = load_config(StreamConfig, options.config, options.set, options.section)
    if options.command == "at":
        at(config, options.position)
    else:
        prove(config, options.steps, options.pixels)


def prove(config: StreamConfig, steps: int, pixels: bool) -> None:
    """Prints the verdict; exits with 1 if the two runs differ."""
    if steps < 2:
        raise UserError("--steps must be at least 2: there is nothing to cut in a single step.")
    proof = prove_resume(config, steps, pixels)
    before, after = proof.worlds
    print(f"stream       {proof.stream_digest}")
    print(f"undisturbed  1 rank, steps 0 to {proof.steps - 1}, {proof.samples} samples")
    print(f"interrupted  {before} ranks up to step {proof.cut - 1}, {after} from step {proof.cut}")
    if proof.difference is not None:
        print(f"DIFFERENT    first at {proof.difference[0]} against {proof.difference[1]}")
        sys.exit(1)
    print(f"EXACT        {'all that batches hold' if pixels else 'ids'}, {proof.samples_digest}")


def at(config: StreamConfig, position: int) -> None:
    if position < 0:
        raise UserError(f"--position {position}: positions start at 0.")
    stream = Stream.open(config)
    for name, task in stream.tasks.items():
        place = task.order.at(position)
        reader = task.readers[place.source]
        url, offset = task.origin(place)
        print(f"{name:10} step {position // task.batch}, position {position}: {task.key(position)}")
        print(f"{'':10} {reader.name} epoch {place.epoch}, {url} at byte {offset}")


if __name__ == "__main__":
    run_command(main)
