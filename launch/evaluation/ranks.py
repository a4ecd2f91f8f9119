"""Ranks that fill the chunks of one evaluation: they meet in files, at its start and at its end."""

import time
from pathlib import Path

from launch.evaluation.meeting import SPEAK_EVERY_S, Meeting, meet, wait_while
from launch.evaluation.outputs import QUERIES
from pipeline.errors import UserError
from training.evaluation.detections import Evaluator, Plan, remove_leftovers
from training.evaluation.weights import Weights

POLL_S = 0.5


def begin(out: Path, plan: Plan, weights: Weights, rank: int, world_size: int) -> Meeting:
    """Clears up while nobody writes, and makes sure that all ranks have the same plan.

    Raises UserError if they have not: rank 0 would wait for ever.
    """
    if rank == 0:
        for folder in (out, out / QUERIES, plan.folder):
            remove_leftovers(folder)
        plan.try_again()
    mine = f"{plan.folder.name}, with {weights.trained.name} at step {weights.trained.step}"
    meeting = meet(out / ".ranks", rank, world_size, mine)
    first = meeting.said[0]
    for other, plans in meeting.said.items():
        if plans != first:
            raise UserError(
                f"rank {other} would evaluate {plans}, and rank 0 {first}: a checkpoint or a shard set was "
                "written while they started, or one has a GPU and the other none. Evaluate again; "
                "--weights RUN/checkpoints/step-* names one, DS_ACCELERATOR=cpu leaves GPUs alone."
            )
    return meeting


def fill(evaluator: Evaluator, meeting: Meeting, rank: int, world_size: int) -> None:
    """Computes this rank's share and says how far it is."""
    plan = evaluator.plan
    before = len(plan.chunks) - len(plan.missing())
    if rank == 0:
        kept = f", {before} of {len(plan.chunks)} chunks are there already" if before else ""
        print(f"{len(plan.places):,} images{kept}: {plan.folder}", flush=True)
    began = spoke = time.perf_counter()
    images = 0
    for chunk in evaluator.run(rank, world_size):
        images += len(plan.images(chunk))
        meeting.greet()
        now = time.perf_counter()
        if rank == 0 and now - spoke > SPEAK_EVERY_S:
            spoke = now
            left = len(plan.missing()) * plan.chunk
            speed = images / (now - began) * world_size
            print(f"{left:,} images left, {speed:.1f} a second", flush=True)


def wait_for_others(plan: Plan, meeting: Meeting) -> None:
    """Ranks meet in the files that they write: no rank waits in a collective that may time out."""

    def missing() -> str:
        left = len(plan.missing())
        meeting.greet()
        return f"waiting for {left} chunks of other ranks" if left else ""

    wait_while(missing, POLL_S)
    meeting.close()
