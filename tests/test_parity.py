"""Two gloo ranks compute what one rank computes: float64, live proposals, the real loss code."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.batch import Batch
from tests.batches import hybrid_batch, make_images, rank_part
from tests.models import tiny_model
from training.distributed import all_gather_rows, all_reduce_sum, rank, world_size
from training.hybrid import HybridModel

STEPS = 5
LEARNING_RATE = 1e-2


def global_batches() -> list[Batch]:
    """Among them one whose second half holds nobody, and one with nobody at all."""
    batches = [hybrid_batch(step) for step in range(STEPS)]
    lonely = make_images((64, 96), [2, 2, 0, 0], first_position=100)
    crops = make_images((64, 48), [1] * 4 + [0] * 4, [[0], [1], [-1], [-1]] + [[]] * 4)
    batches[2] = Batch(2, lonely, crops)
    batches[3] = Batch(3, make_images((64, 96), [0] * 4), make_images((64, 48), [0] * 8))
    return batches


def train(model: HybridModel, steps: int = STEPS, accumulation: int = 1) -> list[dict[str, float]]:
    """Plain SGD on this rank's slices; gradients averaged over ranks as DeepSpeed does."""
    parts, parameters = world_size() * accumulation, list(model.parameters())
    history = []
    for step, batch in enumerate(global_batches()[:steps]):
        mine = [
            rank_part(batch, rank() * accumulation + micro, parts) for micro in range(accumulation)
        ]
        denominators = all_reduce_sum(model.denominators(mine))
        outputs = [model(part, denominators, step) for part in mine]
        for parameter in parameters:
            parameter.grad = None
        for output in outputs:
            output.total.backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= LEARNING_RATE * all_reduce_sum(parameter.grad) / world_size()
        model.update_tables([output.rows for output in outputs])
        names = outputs[0].losses
        shares = torch.stack([sum(o.losses[name] for o in outputs) for name in names])
        history.append(dict(zip(names, all_reduce_sum(shares.double()).tolist())))
    return history


def run_rank(index: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=size
    )
    ragged = all_gather_rows(torch.arange(index + 1)[:, None])
    model = tiny_model().double()
    result = {
        "history": train(model),
        "state": model.state_dict(),
        "digest": model.tables_digest(),
        "ragged": ragged[:, 0].tolist(),
    }
    torch.save(result, Path(folder) / f"rank{index}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    assert first["ragged"] == second["ragged"] == [0, 0, 1]
    assert first["digest"] == second["digest"]

    alone = tiny_model().double()
    history = train(alone)
    for step, (one, two) in enumerate(zip(history, first["history"])):
        for name, value in one.items():
            assert abs(value - two[name]) < 1e-9, f"step {step}: {name} {value} != {two[name]}"
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(
            first["state"][name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
        if "tables" not in name:
            torch.testing.assert_close(second["state"][name], value, rtol=0, atol=1e-9)


def test_accumulation_uses_the_whole_steps_denominators() -> None:
    """With norms in evaluation (statistics do not depend on the split) two micro-steps equal one."""

    def frozen() -> HybridModel:
        model = tiny_model().double()
        for module in model.modules():
            module.training = False
        return model

    whole, halves = frozen(), frozen()
    for one, two in zip(train(whole, 2), train(halves, 2, accumulation=2)):
        for name, value in one.items():
            assert abs(value - two[name]) < 1e-9, name
    for one, two in zip(whole.tables.buffers(), halves.tables.buffers()):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def test_the_split_decides_nothing_that_is_drawn() -> None:
    """Anchors and RoIs sampled for an image are the same alone and among others."""
    model, batch = tiny_model().double(), hybrid_batch()
    for module in model.modules():
        module.training = False
    both = model.search(batch.scenes, "scenes")
    alone = model.search(replace(rank_part(batch, 1, 4)).scenes, "scenes")
    torch.testing.assert_close(both.rois.boxes[[1, 5]], alone.rois.boxes)
    torch.testing.assert_close(both.anchors.labels[[1, 5]], alone.anchors.labels)
