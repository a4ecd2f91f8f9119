"""How long training waits for the real stream, in all three modes of making views."""

import os
import time
from pathlib import Path

from launch.benchmarks.measure import Row, exactly
from launch.benchmarks.training_step import Trainer, wait_for
from launch.benchmarks.training_work import Scale
from pipeline.settings import StreamConfig
from pipeline.stream import Stream

MOST_WAITING = 2.0
MODES = ("exact", "fast", "device")
SHARD_BYTES = 4 << 20


def write_sets(folder: Path, scale: Scale) -> Path:
    """Shard sets `scenes` and `crops`: pictures of 1280 x 720 and of 256 x 128 on canvases."""
    from launch.benchmarks import stream_sets  # needs what reads releases

    written = stream_sets.write_sets(
        folder, scale.scenes_stored, scale.canvases_stored, SHARD_BYTES
    )
    return Path(written.scenes).parent


def wait_rows(sets: Path, trainer: Trainer) -> list[Row]:
    """Shares of the time of steps that are fed by the stream, after as many to warm up."""
    rows = []
    for mode in MODES:
        waited, seconds, images = _fed(_stream(sets, trainer.scale, mode), trainer)
        rows.append(
            Row(
                f"{trainer.variant.name}, views `{mode}`: waits for data",
                exactly(100 * waited / seconds),
                "% of the time",
                MOST_WAITING,
                "lower",
                remark=f"{images / seconds:.3g} images/s with the stream, {_threads()} threads",
            )
        )
    return rows


def _fed(stream: Stream, trainer: Trainer) -> tuple[float, float, int]:
    """Seconds waited, seconds, images."""
    steps = trainer.scale.data_steps
    waited = start = 0.0
    with stream.batches(0, 2 * steps) as batches:
        for number, batch in enumerate(batches):
            trainer.step(batch)
            wait_for(trainer.device)
            if number == steps - 1:
                waited, start = stream.stats.wait_s, time.perf_counter()
    return (
        stream.stats.wait_s - waited,
        time.perf_counter() - start,
        steps * trainer.scale.images,
    )


def _stream(sets: Path, scale: Scale, mode: str) -> Stream:
    def mixture(name: str) -> list[dict[str, object]]:
        return [{"shards": str(sets / name), "weight": 1}]

    config = {
        "scenes": mixture("scenes"),
        "canvases": mixture("crops"),
        "scene_batch": scale.scenes,
        "canvas_batch": scale.canvases,
        "scene_size": scale.scene_size,
        "canvas_size": scale.canvas_size,
        "views": {"mode": mode},
        "threads": _threads(),
        "prefetch": 4,
    }
    return Stream.open(StreamConfig.model_validate(config))


def _threads() -> int:
    """Of the stream: all cores but the one that drives the GPU, and as many as the paper's run at most."""
    return max(1, min(8, len(os.sched_getaffinity(0)) - 1))
