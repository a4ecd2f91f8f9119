"""The settings of the engine, and the JSON that DeepSpeed gets of them."""

from typing import Any, Literal

from pydantic import Field, JsonValue

from pipeline.config import Config
from training.speed import SpeedConfig


class EngineConfig(Config):
    zero_stage: Literal[0, 1] = 0
    """0 replicates the optimizer state, 1 shards it over ranks. The model is small: 0 is the default."""
    accumulation: int = Field(default=1, gt=0)
    """Micro-steps a rank per optimizer step; the global batch stays the stream's."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: DeepSpeed's torch_autocast around the forward; weights, reduction and state stay fp32."""
    clip: float = Field(default=10.0, ge=0)
    """Bound of the global gradient norm; 0: none."""
    threads: int | None = Field(default=None, gt=0)
    """PyTorch's CPU threads a rank; None: PyTorch's own choice."""
    deterministic: bool = False
    """Deterministic algorithms only: bit-equal on one machine type, slower on GPUs."""
    speed: SpeedConfig = SpeedConfig()
    max_nonfinite: int = Field(default=10, ge=0)
    """Steps of the last 1,000 that may be skipped because a loss or the gradient was not finite."""
    timeout_s: int = Field(default=600, gt=0)
    """A collective that takes longer has lost a rank: the run fails."""
    deepspeed: dict[str, JsonValue] = Field(default={})
    """Merged last into the generated DeepSpeed JSON, for what has no setting here."""


def deepspeed_config(config: EngineConfig, global_batch: int, world_size: int) -> dict[str, Any]:
    """The JSON that DeepSpeed gets; `global_batch`: images of an optimizer step, for its counters."""
    generated: dict[str, Any] = {
        "train_batch_size": global_batch,
        "train_micro_batch_size_per_gpu": global_batch // (world_size * config.accumulation),
        "gradient_accumulation_steps": config.accumulation,
        # DeepSpeed's own bucket would be 2 GB a rank from stage 1 on, ten times the state that it shards.
        "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": 50_000_000},
        "zero_allow_untested_optimizer": True,
        "communication_data_type": "fp32",
        "steps_per_print": 2**62,
        # At stage 0 `Engine.step` clips: DeepSpeed would, but does not tell the norm.
        "gradient_clipping": config.clip if config.zero_stage else 0.0,
    }
    if config.precision == "bf16":
        # Without the empty list, ZeRO 1 would reduce the gradients of these modules in bf16.
        safe: list[str] = []
        generated["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": safe,
        }
    return _merged(generated, config.deepspeed)


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        inner = merged.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = _merged(inner, value)
        merged[key] = value
    return merged
