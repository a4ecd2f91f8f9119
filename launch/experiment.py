"""The experiment on generated worlds: python launch/experiment.py run --tier A

Runs what docs/results has no record of, a few processes of one thread side by side, and goes on where it
was. Then: python launch/experiment.py report
"""

import argparse
import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from launch.experiments.domains import compare_domains
from launch.experiments.jobs import needed, run_jobs
from launch.experiments.plan import Planner
from launch.experiments.records import Records
from launch.experiments.results import write_domains, write_results
from launch.experiments.settings import Experiment
from pipeline.device import uses_gpu
from pipeline.errors import UserError, run_command
from pipeline.options import positive
from training.device import require_no_unused_gpu

DOCS = Path(__file__).parents[1] / "docs"


def parse_arguments() -> argparse.Namespace:
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="do the runs of a tier that are missing")
    run.add_argument("--tier", required=True, choices=("A", "B", "C"))
    run.add_argument(
        "--world", type=int, action="append", help="again for more; default: the tier's"
    )
    run.add_argument("--arm", action="append", help="again for more; default: the tier's")
    run.add_argument("--jobs", type=positive, help="side by side; default: one a GPU, or two")
    run.add_argument("--folder", type=Path, default=Path("runs/experiment"), help="of the worlds")
    run.add_argument("--dry-run", action="store_true", help="list what would be done")
    run.set_defaults(command=_run)
    report = commands.add_parser("report", help="write docs/results.md from the records")
    report.set_defaults(command=_report)
    domains = commands.add_parser("domains", help="how far the sources lie apart, before and after")
    domains.add_argument(
        "runs", type=Path, nargs="+", help="folders of pre-trainings, in that of one world"
    )
    domains.set_defaults(command=_domains)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.command(arguments)


def _run(arguments: argparse.Namespace) -> None:
    experiment, records = Experiment.read(), Records()
    tier = experiment.config.tiers[arguments.tier]
    arms = arguments.arm or tier.arms
    if unknown := sorted(set(arms) - set(experiment.config.arms)):
        raise UserError(f"--arm: there is no {', '.join(unknown)}.")
    worlds = arguments.world if arguments.world is not None else range(tier.worlds)
    if not all(0 <= world < tier.worlds for world in worlds):
        raise UserError(f"--world: tier {arguments.tier} has worlds 0 to {tier.worlds - 1}.")
    jobs = Planner(experiment, arguments.folder, records).jobs(arms, worlds)
    if arguments.dry_run:
        for job in needed(jobs):
            print(f"(cd {job.folder} && {shlex.join(job.command)})")
        return
    with claimed(arguments.folder):
        run_jobs(jobs, slots(arguments.jobs))
    print("all is on record: python launch/experiment.py report")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Raises UserError while another process, or what one that was killed left running, works there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "experiment.lock").open("a") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"an experiment, or a command that one left behind, is at work in {folder}: wait for its end."
            ) from None
        yield


def slots(number: int | None) -> list[dict[str, str]]:
    """The environment of each process that may run at a time."""
    require_no_unused_gpu()
    gpus = torch.cuda.device_count() if uses_gpu() else 0
    if gpus:
        ours = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        names = ours.split(",")
        return [{"CUDA_VISIBLE_DEVICES": names[i % gpus]} for i in range(number or gpus)]
    return [{"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}] * (number or 2)


def _report(arguments: argparse.Namespace) -> None:
    print(write_results(Experiment.read(), Records(), DOCS))


def _domains(arguments: argparse.Namespace) -> None:
    print(write_domains(compare_domains(arguments.runs, DOCS), DOCS))


if __name__ == "__main__":
    run_command(main)
