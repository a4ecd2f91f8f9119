"""Any number of ranks computes what one rank computes: the batches, the two trainers, the comparison.

The real loop trains, on batches made by hand: in float64 without DeepSpeed, or in fp32 on DeepSpeed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from ranks import launch, lines, newest
from safetensors.torch import load
from torch import Tensor, nn

from pipeline.batch import Batch
from tests.by_hand import train_by_hand
from tests.models import tiny_config, tiny_model
from tests.parity_batches import STEPS, hybrid_batch, split, stop_at
from training.checkpoint import MODEL, OPTIMIZER
from training.distributed import all_reduce_sum, world_size
from training.engine import Engine, EngineConfig, close_distributed, init_distributed
from training.hybrid import HybridConfig, HybridModel, StepOutput
from training.model.norm import CrossRankNorm

CALM_EPS = 0.1
OPTIMISER = {"kind": "sgd", "lr": 3e-3, "lr_per_images": None, "warmup_steps": 0, "decay": "none"}
ENGINE = {"threads": 1, "deterministic": True, "clip": 1.0, "timeout_s": 300}
FLOAT64, FP32 = 1e-9, 1e-5
"""Bounds of `deviation`."""
LIMIT_S = 3600
Lines = Sequence[dict[str, Any]]


def small_config(rounds: bool) -> HybridConfig:
    """Of the smallest network, float64 being slow. With OIM's usual scale the clip would leave nothing else.

    rounds: whether fp32 is to do, where proposals flip on rounding, and so does which cell of a RoI has the
    maximum and gets its gradient: then proposals are fixed, and a RoI is one cell.
    """
    config = tiny_config()
    small = {"name": "shufflenet_v2", "width": 0.5}
    steady = {"proposal_source": "jitter", "roi_size": (1, 1)} if rounds else {}
    backbone = config.model.backbone.model_copy(update=small)
    detector = config.model.detector.model_copy(update=steady)
    model = config.model.model_copy(update={"backbone": backbone, "detector": detector})
    oim = config.oim.model_copy(update={"scale": 10.0})
    return config.model_copy(update={"model": model, "oim": oim})


class FrozenStatistics(HybridModel):
    """Its norms use the statistics that they have: micro-steps then compute what the whole step computes."""

    def train(self, mode: bool = True) -> "FrozenStatistics":
        super().train(mode)
        for norm in norms(self):
            norm.training = False
        return self


def norms(model: nn.Module) -> Iterator[CrossRankNorm]:
    return (module for module in model.modules() if isinstance(module, CrossRankNorm))


def calm(model: HybridModel) -> None:
    """Keeps rounding from growing.

    In a tiny network of random weights it grows up to tenfold a step, on one rank as on several, so that no
    two orders of one sum train alike for long (docs/benchmarks.md): norms divide by tiny
    deviations, gradients jump where a ReLU's input crosses zero and where a pool's maximum changes place, and
    OIM's gradient is divided by the length of the embeddings, which starts at 0.02.
    """
    for module in list(model.modules()):
        if isinstance(module, CrossRankNorm):
            module.eps = CALM_EPS
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    with torch.no_grad():
        for linear, norm in model.search.embedding_head.projectors.values():
            linear.weight *= 30
            norm.weight *= 100


@cache
def statistics_of_a_batch() -> dict[str, Tensor]:
    """Running statistics to freeze: without, a network of random weights grows from block to block.

    First called before a process group is joined, so that any number of ranks has the same.
    """
    model = tiny_model(small_config(rounds=True))
    calm(model)
    for norm in norms(model):
        norm.momentum = 1.0
    batch = hybrid_batch(0)
    model(batch, model.denominators([batch]), 0)
    tracked = model.running_statistics()
    return {name: buffer for name, buffer in model.named_buffers() if name in tracked}


class PlainEngine:
    """What `Engine` does, without DeepSpeed."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        device: torch.device,
        *_: object,
    ) -> None:
        self.model, self.optimizer, self.device, self.clip = model, optimizer, device, config.clip
        self.parameters = list(model.parameters())
        model.train()

    def forward(self, batch: Batch, denominators: Tensor, step: int) -> StepOutput:
        return self.model(batch, denominators, step)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()
        if last:
            for parameter in self.parameters:
                assert parameter.grad is not None
                parameter.grad = all_reduce_sum(parameter.grad) / world_size()

    def grad_norm(self) -> Tensor:
        return nn.utils.get_total_norm([cast(Tensor, p.grad) for p in self.parameters])

    def grad_norms(self, parts: object) -> dict[str, float]:
        return {}

    def step(self, grad_norm: Tensor) -> None:
        nn.utils.clip_grads_with_norm_(self.parameters, self.clip, grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def drop(self) -> None:
        raise AssertionError("a step was not finite")

    def model_tensors(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Case:
    """One training; by default through DeepSpeed, in fp32, with fixed proposals."""

    zero_stage: int = 0
    accumulation: int = 1
    frozen: bool = False
    """Whether norms use the statistics of one batch all along."""
    plain: bool = False
    """float64 without DeepSpeed, with live proposals."""
    calm: bool = True

    @property
    def name(self) -> str:
        engine = "float64" if self.plain else f"DeepSpeed fp32, ZeRO {self.zero_stage}"
        statistics = "frozen" if self.frozen else "live"
        calm = "" if self.calm else ", as initialised"
        return f"{engine}, accumulation {self.accumulation}, {statistics} statistics{calm}"

    def train(self, folder: Path, steps: int, device: torch.device) -> None:
        """The real loop, which compares the tables of all ranks in every step."""
        sizes = {"zero_stage": self.zero_stage, "accumulation": self.accumulation}
        train_by_hand(
            folder / self.name,
            [stop_at(step).batch for step in range(steps)],
            device,
            kind=FrozenStatistics if self.frozen else HybridModel,
            split=split,
            hybrid=small_config(rounds=not self.plain),
            prepare=self._prepare,
            make_engine=PlainEngine if self.plain else Engine,
            optimiser=OPTIMISER,
            checkpoint={"every": steps},
            engine={**ENGINE, **sizes},
        )

    def _prepare(self, model: HybridModel) -> None:
        if self.plain:
            model.double()
        if self.calm:
            calm(model)
        if self.frozen:
            model.load_state_dict(statistics_of_a_batch(), strict=False)


@dataclass(frozen=True)
class Train:
    """A rank's part in the cases, one after the other."""

    folder: Path
    cases: Sequence[Case]
    steps: int = STEPS

    def __call__(self) -> None:
        statistics_of_a_batch()  # before there are other ranks
        device = init_distributed(EngineConfig.model_validate(ENGINE))
        for case in self.cases:
            case.train(self.folder, self.steps, device)
        close_distributed()


def trained(size: int, folder: Path, cases: Sequence[Case], steps: int = STEPS) -> Path:
    """The folder of what so many ranks trained."""
    runs = folder / f"{size} ranks"
    launch(size, Train(runs, cases, steps), folder / f"processes of {size} ranks", LIMIT_S)
    return runs


@dataclass(frozen=True, order=True)
class Deviation:
    value: float
    """Relative to what was meant, or absolute where that is below 1."""
    where: str

    @classmethod
    def of(cls, where: str, meant: Tensor, found: Tensor) -> "Deviation":
        if not meant.numel() or torch.equal(meant, found):
            return cls(0.0, where)
        error = (found.double() - meant.double()).abs()
        worst = error.argmax()
        value = (error.max() / meant.double().abs().max().clamp(min=1)).item()
        exact = not meant.is_floating_point() or math.isnan(value)
        numbers = f"{found.flatten()[worst].item()} instead of {meant.flatten()[worst].item()}"
        return cls(math.inf if exact else value, f"{where}: {numbers}")


def deviation(meant: Path, found: Path) -> Deviation:
    """The largest in any step's losses and gradient norm, and in all that a checkpoint after the last has."""
    return max(chain(_of_steps(lines(meant), lines(found)), _of_ends(newest(meant), newest(found))))


def _of_steps(meant: Lines, found: Lines) -> Iterator[Deviation]:
    assert len(meant) == len(found)
    for one, other in zip(meant, found):
        assert one["sample_digest"] == other["sample_digest"], f"step {one['step']}: other samples"
        assert one["losses"].keys() == other["losses"].keys()
        for name in one["losses"]:
            yield _of_numbers(
                f"step {one['step']}: {name}", one["losses"][name], other["losses"][name]
            )
        yield _of_numbers(f"step {one['step']}: grad_norm", one["grad_norm"], other["grad_norm"])


def _of_numbers(where: str, meant: float, found: float) -> Deviation:
    double = torch.float64
    return Deviation.of(where, torch.tensor(meant, dtype=double), torch.tensor(found, dtype=double))


def _of_ends(meant: dict[str, bytes], found: dict[str, bytes]) -> Iterator[Deviation]:
    for file in (MODEL, OPTIMIZER):
        one, other = load(meant[file]), load(found[file])
        assert one.keys() == other.keys()
        for name in one:
            yield Deviation.of(f"{file} at the end: {name}", one[name], other[name])
