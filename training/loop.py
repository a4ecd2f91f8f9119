"""The training loop: data, denominators, forward and backward, step, tables, log, checkpoint, stop."""

from collections.abc import Iterator
from itertools import islice

from pipeline.batch import Batch
from pipeline.digest import SampleDigest
from pipeline.stream import Stream
from training.checkpoint import Checkpoints, State
from training.distributed import all_reduce_sum, barrier, is_main, same_on_all_ranks
from training.engine import Engine
from training.hybrid import HybridModel
from training.metrics import Metrics
from training.run import PretrainConfig, RunFolder
from training.schedule import set_lr
from training.signals import StopRequest


def train(
    config: PretrainConfig,
    folder: RunFolder,
    stream: Stream,
    model: HybridModel,
    engine: Engine,
    start: State | None,
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
    stop = StopRequest()
    stopping = False
    with stop.listening(), stream.batches(first, steps) as batches, metrics:
        for step, micro_batches in enumerate(by_step(batches, stream.accumulation), first):
            lr = set_lr(engine.optimizer, config.optimiser, step, steps)
            on_device = [batch.to(engine.device) for batch in micro_batches]
            # Counts over all ranks and micro-steps: every loss is a mean over the global batch.
            denominators = all_reduce_sum(model.denominators(micro_batches).to(engine.device))
            outputs = []
            for batch in on_device:
                output = engine.forward(batch, denominators, step)
                engine.backward(output.total, last=batch is on_device[-1])
                outputs.append(output)
            grad_norm = engine.step()
            model.update_tables([output.rows for output in outputs])

            done = step + 1
            metrics.add(micro_batches, outputs)
            stopping = stop.agreed(engine.device)
            saving = stopping or done == steps or checkpoints.due(done)
            if saving or metrics.due(done):
                eta_s = metrics.log(done, lr, grad_norm, stream.stats, model.statistics())
                if saving:
                    save(checkpoints, stream, model, engine, metrics, done)
                if is_main():
                    folder.write_status(done, steps, eta_s, stopping, checkpoints.latest())
            if stopping:
                break
    return not stopping or done == steps


def by_step(batches: Iterator[Batch], accumulation: int) -> Iterator[list[Batch]]:
    """The micro-batches of one optimizer step after the other."""
    while micro_batches := list(islice(batches, accumulation)):
        yield micro_batches


def save(
    checkpoints: Checkpoints,
    stream: Stream,
    model: HybridModel,
    engine: Engine,
    metrics: Metrics,
    step: int,
) -> None:
    """Collective; right after `metrics.log`, which brings its sums over ranks up to date."""
    tables_digest = model.tables_digest()
    if not same_on_all_ranks(int(tables_digest[:13], 16), engine.device):
        raise RuntimeError("the OIM tables differ between ranks: their updates are not collective")
    state = State(
        step=step,
        images=metrics.images,
        stream_digest=stream.history_digest(step),
        tables_digest=tables_digest,
        sample_digest=metrics.digest.hex(),
    )
    optimizer = engine.optimizer_tensors()
    if is_main():
        checkpoints.write(state, engine.model_tensors(), optimizer)
    barrier()
