"""A page about a run, finished or not: python launch/report.py RUN"""

import argparse
from pathlib import Path

from launch.reporting.data import open_inputs, what_went_in
from launch.reporting.domains import feature_domains
from launch.reporting.summary import in_short, kind, read_lines, what_came_out
from launch.reporting.training import how_training_went
from pipeline.errors import run_command
from pipeline.pages import page
from training.files import write_atomically
from training.metrics import METRICS_FILE
from training.run import load_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--out", help="default: RUN/report.html")
    parser.add_argument(
        "--samples", type=int, default=60, help="images a dataset for the feature domains; 0: none"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    run = load_run(arguments.run)
    folder = run.folder.path
    lines = read_lines(folder / METRICS_FILE)
    inputs = open_inputs(run.config.stream)
    sections = [
        in_short(run, lines, inputs),
        what_went_in(inputs, sorted(folder.glob("ledger-*.jsonl"))),
        how_training_went(lines),
        feature_domains(run, inputs, arguments.samples),
        what_came_out(folder),
    ]
    out = Path(arguments.out) if arguments.out else folder / "report.html"
    title = f"{kind(folder)}: {folder.name}"
    write_atomically(out, page.document(title, str(folder), sections))
    print(out)


if __name__ == "__main__":
    run_command(main)
