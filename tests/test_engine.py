"""DeepSpeed on one rank: generated settings, no compiler, state that any ZeRO stage takes over."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.torch_autocast import get_comm_dtype
from torch import Tensor, nn

from pipeline.errors import UserError
from training.checkpoint import Checkpoint, CheckpointConfig, Checkpoints, State
from training.engine import (
    Engine,
    EngineConfig,
    close_distributed,
    deepspeed_config,
    init_distributed,
    launched_rank,
    launched_world_size,
)
from training.schedule import OptimiserConfig, build_optimizer, set_lr

STEPS = 6


def test_generated_settings() -> None:
    config = EngineConfig(accumulation=2, precision="bf16", clip=5.0)
    assert deepspeed_config(config, global_batch=24, world_size=3) == {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 0, "reduce_bucket_size": 50_000_000},
        "zero_allow_untested_optimizer": True,
        "communication_data_type": "fp32",
        "steps_per_print": 2**62,
        "gradient_clipping": 0.0,
        "torch_autocast": {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def test_own_deepspeed_settings_are_merged_last() -> None:
    extra = {"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True}
    settings = deepspeed_config(EngineConfig(zero_stage=1, clip=5.0, deepspeed=extra), 4, 1)
    assert settings["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 7}
    assert settings["wall_clock_breakdown"] is True
    assert settings["gradient_clipping"] == 5.0


def test_rank_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (launched_rank(), launched_world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (launched_rank(), launched_world_size()) == (3, 8)


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    """A process group of one, started where no operator may be compiled."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    def compile_operator(self: OpBuilder, verbose: bool = True) -> None:
        raise AssertionError(f"DeepSpeed would compile {self.name}")

    with pytest.MonkeyPatch.context() as patched:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patched.delenv(name, raising=False)
        patched.setenv("DS_ACCELERATOR", "cpu")
        patched.setattr(OpBuilder, "load", compile_operator)
        before = dict(os.environ)
        yield init_distributed(EngineConfig(timeout_s=60))
        close_distributed()
        for name in set(os.environ) - set(before):
            del os.environ[name]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 1))
        self.predictor = nn.Linear(3, 3)

    def forward(self, batch: Tensor, denominators: Tensor, step: int) -> SimpleNamespace:
        anchor = sum(p.sum() for p in self.parameters()) * 0
        return SimpleNamespace(total=self.body(batch).square().sum() / denominators + anchor)


OPTIMISER = OptimiserConfig(
    kind="adamw", lr=0.01, lr_per_images=None, warmup_steps=2, decay="cosine"
)


def build(
    device: torch.device, kind: str = "adamw", frozen: bool = False, **changes: object
) -> Engine:
    """`frozen`: the first layer's weights, which are the first of their parameter group."""
    config = EngineConfig.model_validate({"clip": 0.5, **changes})
    model = Model()
    model.body[0].weight.requires_grad_(not frozen)
    settings = OPTIMISER.model_copy(update={"kind": kind})
    constant = {"predictor.weight", "predictor.bias"}
    return Engine(model, build_optimizer(model, settings, 8, constant), config, device, 8)


def run(engine: Engine, first: int, last: int) -> list[float]:
    """Norms of the gradients before clipping."""
    norms = []
    for step in range(first, last):
        set_lr(engine.optimizer, OPTIMISER, step, STEPS)
        samples = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        parts = samples.chunk(engine.config.accumulation)
        for part in parts:
            loss = engine.forward(part, torch.tensor(8.0), step).total  # type: ignore[arg-type]
            engine.backward(loss, last=part is parts[-1])
        norm = engine.grad_norm()
        engine.step(norm)
        norms.append(norm.item())
    return norms


def save(engine: Engine, folder: Path) -> Checkpoint:
    checkpoints = Checkpoints(folder, CheckpointConfig())
    state = State(step=3, images=0, stream_digest="", tables_digest="", sample_digest="")
    checkpoints.write(state, engine.model_tensors(), engine.optimizer_tensors())
    found = checkpoints.newest()
    assert found is not None
    return found


def reference(kind: str) -> list[float]:
    """The same training in plain PyTorch."""
    model = Model()
    settings = OPTIMISER.model_copy(update={"kind": kind})
    optimizer = build_optimizer(model, settings, 8, {"predictor.weight", "predictor.bias"})
    norms = []
    for step in range(STEPS):
        set_lr(optimizer, OPTIMISER, step, STEPS)
        samples = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(samples, torch.tensor(8.0), step).total.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
    return norms


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_trains_like_plain_pytorch(
    device: torch.device, stage: int, accumulation: int, kind: str
) -> None:
    engine = build(device, kind, zero_stage=stage, accumulation=accumulation)
    assert run(engine, 0, STEPS) == pytest.approx(reference(kind), rel=1e-5)


@pytest.mark.parametrize("saved_at", [0, 1])
@pytest.mark.parametrize("restored_at", [0, 1])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_goes_on_at_any_stage_as_if_never_stopped(
    device: torch.device, tmp_path: Path, saved_at: int, restored_at: int, kind: str
) -> None:
    undisturbed = build(device, kind, zero_stage=saved_at)
    run(undisturbed, 0, 3)
    checkpoint = save(undisturbed, tmp_path)
    resumed = build(device, kind, zero_stage=restored_at)
    run(resumed, 0, 1)  # a state that must be overwritten
    resumed.restore(checkpoint)
    # a file that is still mapped cannot be deleted on NFS
    assert str(checkpoint.path) not in Path("/proc/self/maps").read_text()
    tolerance = 0 if saved_at == restored_at else 1e-5
    assert run(resumed, 3, STEPS) == pytest.approx(run(undisturbed, 3, STEPS), rel=tolerance, abs=0)
    for name, tensor in undisturbed.model_tensors().items():
        torch.testing.assert_close(
            resumed.model_tensors()[name], tensor, rtol=tolerance, atol=tolerance
        )


def thawed(device: torch.device, folder: Path, kind: str, stage: int) -> Engine:
    """Goes on from three steps with a frozen layer, which then learns."""
    before = build(device, kind, frozen=True)
    run(before, 0, 3)
    engine = build(device, kind, zero_stage=stage)
    engine.restore(save(before, folder))
    return engine


def test_parameters_that_are_new_to_the_optimizer_begin_with_no_momentum(
    device: torch.device, tmp_path: Path
) -> None:
    engines = [thawed(device, tmp_path / str(stage), "sgd", stage) for stage in (0, 1)]
    norms = [run(engine, 3, STEPS) for engine in engines]
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    tensors = [{**engine.model_tensors(), **engine.optimizer_tensors()} for engine in engines]
    assert "body.0.weight/momentum_buffer" in tensors[0]
    torch.testing.assert_close(tensors[1], tensors[0], rtol=1e-6, atol=1e-8)


def test_one_count_of_steps_cannot_be_two(device: torch.device, tmp_path: Path) -> None:
    run(thawed(device, tmp_path / "0", "adamw", 0), 3, STEPS)
    with pytest.raises(
        UserError, match=r"body.0.weight has taken 0 steps, body.2.weight 3: .*zero_stage=0"
    ):
        thawed(device, tmp_path / "1", "adamw", 1)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("kinds", [("sgd", "adamw"), ("adamw", "sgd")])
def test_state_of_another_optimizer_is_refused(
    device: torch.device, tmp_path: Path, stage: int, kinds: tuple[str, str]
) -> None:
    before = build(device, kinds[0])
    run(before, 0, 3)
    with pytest.raises(
        UserError, match=r"step-00000003 holds .* of another optimiser than `optimiser.kind`"
    ):
        build(device, kinds[1], zero_stage=stage).restore(save(before, tmp_path))


@pytest.mark.parametrize("stage", [0, 1])
def test_bf16_keeps_weights_and_reduction_in_fp32(device: torch.device, stage: int) -> None:
    engine = build(device, precision="bf16", zero_stage=stage)
    norms = run(engine, 0, STEPS)
    assert norms == pytest.approx(reference("adamw"), rel=0.1)
    assert norms != pytest.approx(reference("adamw"), rel=1e-5)
    parameters = list(engine.model.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert {get_comm_dtype(p) for p in parameters} == {torch.float32}
