"""Ranks that fill the chunks of one evaluation, without a word between them."""

import os
import time
from pathlib import Path

import torch

from pipeline.errors import UserError
from training.evaluation.detections import Evaluator, Plan

SPEAK_EVERY_S = 15.0
POLL_S = 0.5


def make_folder(folder: Path) -> None:
    """Raises UserError, before anything was computed for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {folder}: {error.strerror}.") from None


def choose_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if not torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def fill(evaluator: Evaluator, rank: int, world_size: int) -> None:
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
        now = time.perf_counter()
        if rank == 0 and now - spoke > SPEAK_EVERY_S:
            spoke = now
            left = len(plan.missing()) * plan.chunk
            speed = images / (now - began) * world_size
            print(f"{left:,} images left, {speed:.1f} a second", flush=True)


def wait_for_others(plan: Plan) -> None:
    """Ranks meet in the files that they write: no rank waits in a collective that may time out."""
    spoke = time.perf_counter()
    while missing := plan.missing():
        if time.perf_counter() - spoke > SPEAK_EVERY_S:
            spoke = time.perf_counter()
            print(f"waiting for {len(missing)} chunks of other ranks", flush=True)
        time.sleep(POLL_S)
