"""The optimiser, and the learning rate of every step as a pure function of its number: no scheduler state."""

import math
from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.config import Config


class OptimiserConfig(Config):
    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.003, gt=0)
    """Peak learning rate; NAE's SGD recipe by default."""
    lr_per_images: int | None = Field(default=5, gt=0)
    """Images of the global batch that `lr` is meant for: it grows linearly with the batch (Goyal et al.,
    arXiv 1706.02677). None: `lr` as it is."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD's momentum, AdamW's first beta."""
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_vectors: bool | Literal["norms"] = False
    """Weight decay on norms' weights too, as NAE has it (`norms`), or on biases as well, as SeqNet."""
    warmup_steps: int = Field(default=500, ge=0)
    """Steps of linear growth from 0 to the peak."""
    decay: Literal["step", "cosine", "none"] = "step"
    """After warm-up: x0.1 at `step_at` of all steps, half a cosine down to 0, or nothing."""
    step_at: float = Field(default=0.7, gt=0, le=1)


def peak_lr(config: OptimiserConfig, global_batch: int) -> float:
    return config.lr * (global_batch / config.lr_per_images if config.lr_per_images else 1.0)


def lr_factor(config: OptimiserConfig, step: int, steps: int, constant: bool = False) -> float:
    """What the peak learning rate is multiplied by in step `step` of `steps`, counted from 0.

    `constant` parameters (SimSiam's predictor, arXiv 2011.10566 section 4.2; the domain heads) warm up
    and then keep the peak.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if constant or config.decay == "none":
        return 1.0
    if config.decay == "step":
        return 1.0 if step < config.step_at * steps else 0.1
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(
    model: nn.Module,
    config: OptimiserConfig,
    global_batch: int,
    constant_lr: Collection[str] = (),
    fused: bool = False,
) -> Optimizer:
    """Every trainable parameter in one of up to four groups; `constant_lr` holds parameter names.

    fused: one kernel for many parameters, for GPUs; the state is the same.
    """
    unknown = set(constant_lr) - {name for name, _ in model.named_parameters()}
    if unknown:
        raise ValueError(f"no such parameters: {sorted(unknown)}")
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 or _is_decayed_vector(name, config)
            members.setdefault((decayed, name in constant_lr), []).append(parameter)
    lr = peak_lr(config, global_batch)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": lr,
            "peak_lr": lr,
            "constant": constant,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (decayed, constant), parameters in members.items()
    ]
    if config.kind == "sgd":
        return SGD(groups, lr=lr, momentum=config.momentum, fused=fused)
    return AdamW(groups, lr=lr, betas=(config.momentum, 0.999), fused=fused)


def _is_decayed_vector(name: str, config: OptimiserConfig) -> bool:
    if config.decay_vectors == "norms":
        return name.rsplit(".", 1)[-1] != "bias"
    return config.decay_vectors


def set_lr(optimizer: Optimizer, config: OptimiserConfig, step: int, steps: int) -> float:
    """Sets every group's learning rate for `step`; returns that of the decaying groups."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * lr_factor(config, step, steps, group["constant"])
    return optimizer.param_groups[0]["peak_lr"] * lr_factor(config, step, steps)
