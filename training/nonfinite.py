"""Steps whose loss or gradient is not finite: skipped by all ranks, written out, and bounded."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.batch import Batch, Images
from pipeline.errors import UserError
from training.distributed import is_main, rank
from training.files import write_atomically
from training.hybrid import KINDS, StepOutput

WINDOW = 1000
"""Steps in which skipped ones are counted against their bound."""


def not_finite(outputs: Sequence[StepOutput], grad_norm: Tensor) -> Tensor:
    """Whether this rank has a loss or a gradient that is not finite. Does not wait for the device."""
    totals = [output.total.detach() for output in outputs]
    return ~torch.stack([*totals, grad_norm.to(totals[0])]).isfinite().all()


class Skips:
    """The steps that a run has skipped: `nonfinite/STEP-RANK.json` in its folder, a file for each rank."""

    def __init__(self, run: Path, bound: int, steps: Sequence[int]) -> None:
        """`steps`: those skipped before, in a run that goes on. `bound`: of the last `WINDOW` steps."""
        self.run, self.bound = run, bound
        self.steps = list(steps)

    def add(
        self, step: int, batches: Sequence[Batch], outputs: Sequence[StepOutput], grad_norm: Tensor
    ) -> None:
        """Writes out what this rank saw in `step`. Raises UserError, on all ranks, over the bound."""
        folder = self.run / "nonfinite"
        folder.mkdir(exist_ok=True)
        seen = {
            "step": step,
            "grad_norm": _number(grad_norm),
            "micro_batches": [_describe(*part) for part in zip(batches, outputs, strict=True)],
        }
        path = folder / f"{step:08d}-{rank():05d}.json"
        write_atomically(path, json.dumps(seen, indent=1) + "\n")
        self.steps.append(step)
        if is_main():
            print(f"step {step + 1}: skipped, loss or gradient not finite: {path}", flush=True)
        recent = [skipped for skipped in self.steps if skipped > step - WINDOW]
        if len(recent) > self.bound:
            raise UserError(
                f"{len(recent)} of the last {WINDOW} steps had a loss or gradient that is not finite, more "
                "than `engine.max_nonfinite`: counted from 0, the last are steps "
                f"{', '.join(map(str, recent[-5:]))}. {folder} has the samples and losses of each rank; "
                f"`python -m pipeline look --config {self.run}/config.yaml --step {step} --out step.html` "
                "shows them. --resume repeats the steps since the newest checkpoint exactly; with "
                "--allow-change, a smaller `optimiser.lr` or `engine.clip`, or `engine.precision: fp32`, "
                "may get past them."
            )


def _describe(batch: Batch, output: StepOutput) -> dict[str, object]:
    losses = {name: _number(value) for name, value in output.losses.items()}
    broken = [name for name, value in losses.items() if isinstance(value, str)]
    seen: dict[str, object] = {"not_finite": broken, "losses": losses}
    for kind in KINDS:
        images: Images | None = getattr(batch, kind)
        if images is not None:
            seen[kind] = list(zip(images.position.tolist(), images.keys))
    return seen


def _number(value: Tensor) -> float | str:
    """JSON knows neither inf nor nan: they come as text."""
    number = float(value)
    return number if value.isfinite() else str(number)
