"""One training step without DeepSpeed, and how it is made faster step by step."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from launch.benchmarks.measure import peak_bytes, resident_bytes, restart_peak
from launch.benchmarks.training_plain import make_plain
from launch.benchmarks.training_work import Scale, made_batch, made_model
from pipeline.batch import Batch
from training.hybrid import StepOutput
from training.schedule import OptimiserConfig, build_optimizer
from training.speed import SpeedConfig, choose_kernels, prepare

CLIP = 10.0


@dataclass(frozen=True)
class Variant:
    name: str
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    bf16: bool = False
    plain: bool = False
    """The baseline."""

    @property
    def ceiling(self) -> str:
        """Whose matrix products bound it."""
        return "bf16" if self.bf16 else "tf32" if self.speed.tf32 else "fp32"


PLAIN, OURS = Variant("plain fp32", plain=True), Variant("ours fp32")
BF16 = Variant("ours bf16", bf16=True)
ON_GPU = (
    PLAIN,
    OURS,
    Variant("plain TF32", SpeedConfig(tf32=True), plain=True),
    Variant("ours TF32", SpeedConfig(tf32=True)),
    BF16,
    Variant("+ compile", SpeedConfig(compile=True), bf16=True),
)


def variants(device: torch.device) -> tuple[Variant, ...]:
    """In the order in which settings are added. bf16 on a CPU only where its convolutions are fast."""
    if device.type == "cuda":
        return ON_GPU
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return (PLAIN, OURS, BF16) if wide else (PLAIN, OURS)


class Trainer:
    """The forward, backward and update of `training.loop`, on made batches, one rank."""

    def __init__(
        self, folder: Path, scale: Scale, variant: Variant, device: torch.device, **model: str
    ) -> None:
        self.scale, self.variant, self.device = scale, variant, device
        self.model = made_model(folder, scale, **model)
        prepare(self.model.search, variant.speed)
        if variant.plain:
            make_plain(self.model.search)
        self.model.to(device).train()
        self.optimizer = build_optimizer(
            self.model,
            OptimiserConfig(lr=1e-5, lr_per_images=None),
            scale.images,
            self.model.constant_lr_parameters(),
            fused=device.type == "cuda" and not variant.plain,
        )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.batches = [made_batch(scale, number) for number in range(2)]
        self.done = 0

    def autocast(self) -> AbstractContextManager[object]:
        if not self.variant.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def forward(self, batch: Batch) -> StepOutput:
        denominators = self.model.denominators([batch]).to(self.device, non_blocking=True)
        on_device = batch.to(self.device)
        with self.autocast():
            return self.model(on_device, denominators, self.done)

    def update(self, output: StepOutput) -> Tensor:
        """After the backward; the gradient's norm."""
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.update_tables([output.rows])
        return norm

    def step(self, batch: Batch | None = None) -> StepOutput:
        if batch is None:
            batch = self.batches[self.done % len(self.batches)]
        output = self.forward(batch)
        output.total.backward()
        self.update(output)
        self.done += 1
        return output

    def turn(self) -> int:
        """Images of a few steps, to their very end."""
        if self.device.type == "cuda":
            choose_kernels(self.variant.speed)
        for _ in range(self.scale.steps):
            self.step()
        wait_for(self.device)
        return self.scale.steps * self.scale.images

    def peak(self) -> float:
        """Most GB that a step takes above what is there without it."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.turn()
            return (torch.cuda.max_memory_allocated() - before) / 1e9
        restart_peak()
        before = resident_bytes()
        self.turn()
        return (peak_bytes() - before) / 1e9


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceilings(side: int, device: torch.device) -> dict[str, float]:
    """FLOP/s of one large product of matrices, by precision: the best of many."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        left = torch.randn(side, side, device=device, dtype=dtype)
        seconds = best_seconds(partial(torch.mm, left, left), device)
        found[name] = 2 * side**3 / seconds
    return found


def best_seconds(work: Callable[[], object], device: torch.device, times: int = 20) -> float:
    best = float("inf")
    for _ in range(times):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best
