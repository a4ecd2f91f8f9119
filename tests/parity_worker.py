"""Trains the tiny model through DeepSpeed on hand-made batches; started by test_deepspeed_parity.py."""

import json
import sys
from typing import Any

import torch

from tests.batches import rank_part
from tests.models import tiny_config, tiny_model
from tests.test_parity import global_batches
from training.distributed import all_gather_rows, all_reduce_sum, is_main, rank, world_size
from training.engine import Engine, EngineConfig, close_distributed, init_distributed
from training.schedule import OptimiserConfig, build_optimizer


def train(config: EngineConfig, device: torch.device) -> dict[str, Any]:
    hybrid = tiny_config()
    fixed = hybrid.model.detector.model_copy(update={"proposal_source": "jitter"})
    model = tiny_model(
        hybrid.model_copy(update={"model": hybrid.model.model_copy(update={"detector": fixed})})
    )
    optimizer = build_optimizer(
        model,
        OptimiserConfig(kind="sgd", lr=1e-2, lr_per_images=None),
        12,
        model.constant_lr_parameters(),
    )
    engine = Engine(model, optimizer, config, device, global_batch=12)
    history = []
    for step, batch in enumerate(global_batches()):
        mine = rank_part(batch, rank(), world_size())
        denominators = all_reduce_sum(model.denominators([mine]))
        result = engine.forward(mine, denominators, step)
        engine.backward(result.total, last=True)
        norm = engine.grad_norm()
        engine.step(norm)
        model.update_tables([result.rows])
        shares = all_reduce_sum(torch.stack(list(result.losses.values())).double())
        history.append({**dict(zip(result.losses, shares.tolist())), "grad_norm": norm.item()})
    digest = torch.tensor([list(bytes.fromhex(model.tables_digest()))])
    return {"history": history, "digests": all_gather_rows(digest).tolist()}


def main(output: str) -> None:
    config = EngineConfig(threads=1, clip=5.0, timeout_s=120)
    device = init_distributed(config)
    results = {
        stage: train(config.model_copy(update={"zero_stage": stage}), device) for stage in (0, 1)
    }
    if is_main():
        with open(output, "w") as file:
            json.dump(results, file)
    close_distributed()


if __name__ == "__main__":
    main(sys.argv[-1])  # the launcher puts --local_rank first
