"""The step through DeepSpeed's engine, as `launch/pretrain.py` takes it."""

from pathlib import Path

import torch
from torch import Tensor

from launch.benchmarks.training_step import CLIP, Trainer, Variant
from launch.benchmarks.training_work import Scale
from pipeline.batch import Batch
from training.engine import Engine, EngineConfig, close_distributed, init_distributed
from training.hybrid import StepOutput


class EngineTrainer(Trainer):
    """In a process that is free to join a process group."""

    def __init__(self, folder: Path, scale: Scale, variant: Variant) -> None:
        config = EngineConfig(
            precision="bf16" if variant.bf16 else "fp32", clip=CLIP, speed=variant.speed
        )
        device = init_distributed(config)
        super().__init__(folder, scale, variant, device)
        tracked = self.model.running_statistics()
        self.engine = Engine(self.model, self.optimizer, config, device, scale.images, tracked)

    def forward(self, batch: Batch) -> StepOutput:
        denominators = self.model.denominators([batch]).to(self.device)
        return self.engine.forward(batch.to(self.device), denominators, self.done)

    def step(self, batch: Batch | None = None) -> StepOutput:
        output = self.forward(batch or self.batches[self.done % len(self.batches)])
        self.engine.backward(output.total, last=True)
        self.update(output)
        self.done += 1
        return output

    def update(self, output: StepOutput) -> Tensor:
        norm = self.engine.grad_norm()
        if torch.isfinite(norm):  # the loop asks, and waits for the device
            self.engine.step(norm)
        self.model.update_tables([output.rows])
        return norm

    def close(self) -> None:
        close_distributed()
