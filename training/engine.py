"""DeepSpeed, all of it: process group, engine, gradients, optimizer state. Imported nowhere else.

It is imported inside the functions that use it: its import probes the accelerator and logs, which
commands that only read a run's settings should not pay for.
"""

import os
import socket
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.batch import Batch
from pipeline.errors import UserError
from training.checkpoint import Checkpoint
from training.device import local_device
from training.distributed import all_reduce_sum, world_size
from training.engine_config import EngineConfig, deepspeed_config
from training.hybrid import StepOutput
from training.speed import choose_kernels

UNSHARDED = {"step"}
"""Optimizer state that is a number, not a tensor of its parameter's shape."""
FIELDS: dict[type[Optimizer], set[str]] = {
    SGD: {"momentum_buffer"},
    AdamW: {"step", "exp_avg", "exp_avg_sq"},
}
"""What an optimizer keeps of a parameter."""


def launched_rank() -> int:
    """This process's rank as the launcher set it; 0 when started by hand."""
    return int(os.environ.get("RANK", "0"))


def launched_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def init_distributed(config: EngineConfig) -> torch.device:
    """Joins the process group (NCCL on GPUs, gloo on CPUs) and returns this rank's device.

    A process that no launcher started becomes a group of one. Raises UserError as `local_device` does.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by deterministic cuBLAS
    torch.use_deterministic_algorithms(config.deterministic)
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=free_port(),
        )
    device = local_device()
    gpu = device.type == "cuda"
    if not gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        forbid_compiled_ops()
    import deepspeed

    if gpu:
        choose_kernels(config.speed)
    deepspeed.init_distributed(
        dist_backend="nccl" if gpu else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=config.timeout_s),
    )
    return device


def forbid_compiled_ops() -> None:
    """Keeps DeepSpeed from compiling its shared-memory all-reduce when the process group starts.

    That takes a minute and a C++ compiler, and gloo does the same work. DeepSpeed has no public switch:
    it builds what this table calls compatible.
    """
    import deepspeed.ops

    vars(deepspeed.ops)["__compatible_ops__"] = {}


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def close_distributed() -> None:
    torch.distributed.destroy_process_group()


class Engine:
    """The model and its optimizer under data parallelism."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: EngineConfig,
        device: torch.device,
        global_batch: int,
        tracked: Collection[str] = (),
    ) -> None:
        """`tracked`: names of buffers that a forward moves, to be put back where its step is dropped."""
        import deepspeed

        self.config = config
        self.device = device
        self.model = model
        self.optimizer = optimizer
        self._names = {p: name for name, p in model.named_parameters()}
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._members = [list(group["params"]) for group in optimizer.param_groups]
        settings = deepspeed_config(config, global_batch, world_size())
        self._engine, _, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings
        )
        self._engine.train()
        # Only now: the device has been given its own.
        self._tracked = [b for name, b in model.named_buffers() if name in tracked]
        self._before = [buffer.clone() for buffer in self._tracked]
        self._norms: dict[str, Tensor] = {}

    def forward(self, batch: Batch, denominators: Tensor, step: int) -> StepOutput:
        return self._engine(batch, denominators, step)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds to the gradients; the `last` micro-step of a step also averages them over ranks.

        The loss is not divided by the number of micro-steps: its denominators span all of them.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def grad_norm(self) -> Tensor:
        """Global norm of the gradients after the last micro-step, equal on all ranks. Collective."""
        own = dict(self._gradients())
        self._norms = dict(zip(own, torch._foreach_norm(list(own.values())) if own else ()))
        if self.config.zero_stage == 0:
            return torch.linalg.vector_norm(torch.stack(list(self._norms.values())))
        norm = torch.as_tensor(self._engine.optimizer.scaled_global_norm())
        return norm.masked_fill(norm < 0, float("inf"))  # -1: not finite

    def grad_norms(self, parts: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
        """`grad_norm/PART`, of the gradients that `grad_norm` measured last: their squares add up to its own.

        parts: how the names of a part's parameters begin. Waits for the device. Collective.
        """
        squares = torch.stack([self._square(starts) for starts in parts.values()])
        if self.config.zero_stage:  # each rank has a part of the gradients
            squares = all_reduce_sum(squares)
        return {f"grad_norm/{p}": norm for p, norm in zip(parts, squares.sqrt().tolist())}

    def _square(self, starts: tuple[str, ...]) -> Tensor:
        found = [norm for name, norm in self._norms.items() if name.startswith(starts)]
        norms = torch.stack(found) if found else torch.zeros(0, device=self.device)
        return norms.double().square().sum()

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Those that this rank holds after the last micro-step, by parameter: of ZeRO 1 its own part."""
        if self.config.zero_stage == 0:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    yield self._names[parameter], parameter.grad
            return
        zero = self._engine.optimizer
        for number, flat in zero.averaged_gradients.items():
            parts = (part for part in flat if not getattr(part, "_zero_padding", False))
            for parameter, part in zip(zero.params_in_partition[number], parts):
                yield self._names[parameter], part

    def step(self, grad_norm: Tensor) -> None:
        """Clips the gradients, whose norm it is, and applies them."""
        if self.config.zero_stage == 0 and self.config.clip:
            nn.utils.clip_grads_with_norm_(self._parameters, self.config.clip, grad_norm)
        self._engine.step()
        self._keep_tracked()

    def drop(self) -> None:
        """Forgets this step: weights, optimizer state and tracked buffers are as before it."""
        if self.config.zero_stage == 0:
            self._engine.zero_grad()  # an optimizer passes over parameters without a gradient
        else:  # DeepSpeed drops a step whose gradient is not finite
            for gradients in self._engine.optimizer.averaged_gradients.values():
                for gradient in gradients:
                    gradient.fill_(float("nan"))
        self._engine.step()
        for buffer, before in zip(self._tracked, self._before):
            buffer.copy_(before)

    def _keep_tracked(self) -> None:
        if self._tracked:
            torch._foreach_copy_(self._before, self._tracked)

    def model_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, equal on all ranks."""
        return dict(self.model.state_dict())

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """`parameter/state` -> tensor, whatever the ZeRO stage. Collective at stage 1."""
        if self.config.zero_stage:
            return self._gather_sharded_state()
        return {
            f"{self._names[parameter]}/{key}": value
            for parameter in self._parameters
            for key, value in self.optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over weights and optimizer state, written by any world size and ZeRO stage.

        A parameter without state, which was frozen until now, begins as in a new run. Raises UserError if the
        model, or the optimizer, is another one.
        """
        checkpoint.load_into(self.model)
        self._keep_tracked()
        state: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in checkpoint.optimizer().items():
            name, _, field = key.rpartition("/")
            state[name][field] = value.clone()  # or the file stays mapped, which NFS cannot delete
        self._require_own(state, checkpoint)
        if self.config.zero_stage:
            self._engine.optimizer.refresh_fp32_params()
            self._scatter_sharded_state(state)
            return
        numbered = {i: state[self._names[p]] for i, p in enumerate(self._parameters)}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})

    def _require_own(
        self, state: Mapping[str, Mapping[str, Tensor]], checkpoint: Checkpoint
    ) -> None:
        """Raises UserError if `state` is another optimizer's."""
        fields = {field for of_parameter in state.values() for field in of_parameter}
        if fields - FIELDS[type(self.optimizer)]:
            raise UserError(
                f"{checkpoint.path} holds {', '.join(sorted(fields))} of another optimiser than "
                f"`optimiser.kind` names. Set that as it was, or begin a new run with these weights: "
                f"--set run=... --set start.weights={checkpoint.path}."
            )

    def _shards(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """ZeRO's flat part of each parameter group on this rank, and whose parameters lie in it."""
        for group, members in zip(self.optimizer.param_groups, self._members):
            yield group["params"][0], members

    def _gather_sharded_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_sharded_state()
        gathered: dict[str, Tensor] = {}
        for flat, members in self._shards():
            for parameter in members:
                for field, value in self.optimizer.state[flat].items():
                    if field not in UNSHARDED:
                        value = safe_get_full_optimizer_state(parameter, field)
                    gathered[f"{self._names[parameter]}/{field}"] = value
        return gathered

    def _scatter_sharded_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """DeepSpeed makes its shards in the first step: make them now, empty, then fill this rank's part."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for group, (flat, members) in zip(self.optimizer.param_groups, self._shards()):
            names = [self._names[parameter] for parameter in members]
            # in one order on all ranks, which gather them field by field
            for field in dict.fromkeys(field for name in names for field in state[name]):
                if field in UNSHARDED:
                    count = _shared_count({name: state[name].get(field) for name in names})
                    # a fused optimizer counts where the parameters are
                    place = flat.device if group.get("fused") else None
                    self.optimizer.state[flat][field] = torch.tensor(float(count), device=place)
                else:
                    self.optimizer.state[flat][field] = torch.zeros_like(flat)
        self._link_sharded_state()
        for parameter in self._parameters:
            for field, value in state[self._names[parameter]].items():
                if field not in UNSHARDED:
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), field)

    def _link_sharded_state(self) -> None:
        """Lets DeepSpeed's accessors find all shards.

        It links parameters to their shards once, in the first step of the first parameter group, when
        the other groups have no state yet (0.19.8).
        """
        zero = self._engine.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _shared_count(counts: Mapping[str, Tensor | None]) -> int:
    """The steps that all parameters of a group have taken. Raises UserError if they differ."""
    steps = {name: 0 if count is None else int(count) for name, count in counts.items()}
    least, most = min(steps, key=steps.__getitem__), max(steps, key=steps.__getitem__)
    if steps[least] != steps[most]:
        raise UserError(
            f"{least} has taken {steps[least]} steps, {most} {steps[most]}: ZeRO 1 keeps one count for both. "
            "Go on with --set engine.zero_stage=0."
        )
    return steps[least]
