"""The numbers of a person-search benchmark: python launch/evaluate.py --weights RUN --data SHARDS --out DIR

On several GPUs: deepspeed launch/evaluate.py with the same arguments. Killed, it goes on where it was.
DIR gets results.json, report.html and queries/PROTOCOL.parquet.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.evaluation.outputs import PAGE, QUERIES, RESULTS, prepare_evaluation
from launch.evaluation.ranks import begin, fill, wait_for_others
from launch.evaluation.record import describe, warnings, write_queries
from launch.evaluation.report import report
from pipeline.config import apply_override, parse_config
from pipeline.errors import UserError, run_command
from pipeline.samples import SampleReader
from pipeline.shards import ShardSet
from training.device import inference_device
from training.engine import launched_rank, launched_world_size
from training.evaluation.benchmarks import benchmark_of
from training.evaluation.detections import (
    EvaluationConfig,
    Evaluator,
    gather,
    make_plan,
    write_whole,
)
from training.evaluation.protocols import query_boxes
from training.evaluation.results import console_table, outcome
from training.evaluation.weights import WEIGHTS_HELP, load_weights


def parse_arguments() -> argparse.Namespace:
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--weights", required=True, help=WEIGHTS_HELP)
    parser.add_argument("--data", required=True, help="URL of the test split's shard set")
    parser.add_argument(
        "--protocol", action="append", help="such as TestG100, again for more; default: all"
    )
    parser.add_argument(
        "--across-cameras", action="store_true", help="PRW: also without the query's camera"
    )
    parser.add_argument("--out", required=True, help="folder of this evaluation")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="a setting")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    config = read_settings(arguments.set)
    shard_set = ShardSet(arguments.data)
    tables = {name: shard_set.protocol(name) for name in shard_set.manifest.protocols}
    chosen = arguments.protocol or list(tables)
    wanted = {name: tables[name] if name in tables else shard_set.protocol(name) for name in chosen}
    require_search_set(shard_set)
    benchmark = benchmark_of(shard_set.manifest.dataset)
    if arguments.across_cameras:
        benchmark.require_cameras()
    quarantined = shard_set.quarantine()
    reader, weights = SampleReader(shard_set), load_weights(arguments.weights)
    queries, out = query_boxes(tables.values()), Path(arguments.out)
    prepare_evaluation(out)
    device = inference_device()
    plan = make_plan(reader, weights, config, queries, device, out)
    weights.model.to(device)

    rank, world_size = launched_rank(), launched_world_size()
    meeting = begin(out, plan, weights, rank, world_size)
    fill(Evaluator(plan, reader, weights, config, queries), meeting, rank, world_size)
    if rank != 0:
        return
    wait_for_others(plan, meeting)
    width = weights.model.config.heads.embedding
    across = arguments.across_cameras
    found = outcome(gather(plan, width), wanted, queries, benchmark, config, quarantined, across)
    results = {**describe(weights, shard_set, config, device), **found.summary()}
    write_whole(out / RESULTS, f"{json.dumps(results, indent=1)}\n".encode())
    write_queries(found, out / QUERIES)
    notes = warnings(results)
    write_whole(out / PAGE, report(results, found, reader, notes).encode())
    print(console_table(results))
    for warning in notes:
        print(f"note: {warning}")
    print(f"{out / RESULTS}\n{out / PAGE}")


def read_settings(overrides: Sequence[str]) -> EvaluationConfig:
    """Raises UserError."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    return parse_config(EvaluationConfig, tree, "--set")


def require_search_set(shard_set: ShardSet) -> None:
    if not shard_set.manifest.protocols:
        raise UserError(
            f"{shard_set.url} has no protocol: it holds {shard_set.manifest.dataset}/"
            f"{shard_set.manifest.split}. Evaluation takes prw/test, cuhk_sysu/test or posetrack21/val."
        )


if __name__ == "__main__":
    run_command(main, speaks=lambda: launched_rank() == 0)
