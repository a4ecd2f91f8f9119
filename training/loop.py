"""The training loop: data, denominators, forward and backward, step, tables, log, checkpoint, stop."""

from collections.abc import Iterator
from itertools import islice

from pipeline.batch import Batch
from pipeline.digest import SampleDigest
from pipeline.errors import UserError
from pipeline.stream import Stream
from training.checkpoint import Checkpoints, State
from training.distributed import all_reduce_sum, any_rank, is_main, same_on_all_ranks
from training.engine import Engine
from training.hybrid import HybridModel
from training.metrics import Metrics
from training.nonfinite import Skips, not_finite
from training.run import RunFolder
from training.run_config import RunConfig
from training.schedule import set_lr
from training.signals import StopRequest
from training.statistics import GRADIENT_PARTS
from training.whereabouts import Whereabouts


def train(
    config: RunConfig,
    folder: RunFolder,
    stream: Stream,
    model: HybridModel,
    engine: Engine,
    start: State | None,
    here: Whereabouts,
) -> bool:
    """Trains from `start` (None: step 0) to the last step; False if a signal stopped it before.

    Collective: every rank calls it and does the same in every step.
    """
    steps = config.steps
    first, images, digest = (start.step, start.images, start.sample_digest) if start else (0, 0, "")
    metrics = Metrics(
        folder.path, config.log, steps, first, images, SampleDigest(digest), engine.device
    )
    checkpoints = folder.checkpoints(config.checkpoint)
    skips = Skips(folder.path, config.engine.max_nonfinite, start.skipped if start else ())
    stop = StopRequest()
    stopping = False
    if is_main():
        folder.write_status(first, steps, None, stopping, checkpoints.latest())
    with stop.listening(), stream.batches(first, steps) as batches, metrics:
        for step, micro_batches in enumerate(by_step(batches, stream.accumulation), first):
            here.step = step
            lr = set_lr(engine.optimizer, config.optimiser, step, steps)
            on_device = [batch.to(engine.device) for batch in micro_batches]
            # Counts over all ranks and micro-steps: every loss is a mean over the global batch.
            denominators = all_reduce_sum(model.denominators(micro_batches).to(engine.device))
            outputs = []
            for batch in on_device:
                output = engine.forward(batch, denominators, step)
                engine.backward(output.total, last=batch is on_device[-1])
                outputs.append(output)
            grad_norm = engine.grad_norm()
            # This waits for the device: both questions are asked at once.
            flags = (stop.received, not_finite(outputs, grad_norm))
            stopping, skipping = any_rank(flags, engine.device)
            if skipping:
                engine.drop()
                skips.add(step, micro_batches, outputs, grad_norm)
            else:
                engine.step(grad_norm)
                model.update_tables([output.rows for output in outputs])

            done = step + 1
            metrics.add(micro_batches, [] if skipping else outputs)
            if done % config.log.check_tables_every == 0:
                shared_digest(model, engine)
            last = stopping or done == steps
            saving = last or checkpoints.due(done)
            if saving or metrics.due(done):
                statistics = {
                    **model.statistics(),
                    **engine.grad_norms(GRADIENT_PARTS),
                    "skipped_steps": len(skips.steps),
                }
                eta_s = metrics.log(done, lr, grad_norm, stream.stats, statistics)
                if saving:
                    state = state_after(done, stream, model, engine, metrics, skips)
                    save(checkpoints, state, engine, wait=last)
                if is_main():
                    folder.write_status(done, steps, eta_s, stopping, checkpoints.latest())
            if stopping:
                break
    return not stopping or done == steps


def by_step(batches: Iterator[Batch], accumulation: int) -> Iterator[list[Batch]]:
    """The micro-batches of one optimizer step after the other."""
    while micro_batches := list(islice(batches, accumulation)):
        yield micro_batches


def shared_digest(model: HybridModel, engine: Engine) -> str:
    """The tables' digest. Raises RuntimeError where a rank has other tables. Collective."""
    digest = model.tables_digest()
    if not same_on_all_ranks(int(digest[:13], 16), engine.device):
        raise RuntimeError("the OIM tables differ between ranks: their updates are not collective")
    return digest


def state_after(
    step: int, stream: Stream, model: HybridModel, engine: Engine, metrics: Metrics, skips: Skips
) -> State:
    """Right after `metrics.log`, which brings its sums over ranks up to date. Collective."""
    return State(
        step=step,
        images=metrics.images,
        stream_digest=stream.history_digest(step),
        tables_digest=shared_digest(model, engine),
        sample_digest=metrics.digest.hex(),
        skipped=tuple(skips.steps),
    )


def save(checkpoints: Checkpoints, state: State, engine: Engine, wait: bool) -> None:
    """Writes a checkpoint; with `wait` it is there afterwards, also if written in the background.

    Raises UserError on all ranks if that, or the one before it, could not be written. Collective.
    """
    optimizer = engine.optimizer_tensors()
    problem = None
    if is_main():
        try:
            checkpoints.write(state, engine.model_tensors(), optimizer)
            if wait:
                checkpoints.wait()
        except UserError as error:
            problem = error
    (failed,) = any_rank([problem is not None], engine.device)
    if failed:
        raise problem or UserError("rank 0 could not write a checkpoint, and says why.")
