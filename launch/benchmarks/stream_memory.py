"""Peak memory of a rank at the sizes of the paper's recipe on eight GPUs, in a fresh process."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from launch.benchmarks.measure import Row, exactly, peak_bytes, resident_bytes, restart_peak
from pipeline.settings import StreamConfig
from pipeline.stream import Stream

WORLD = 8
SETTINGS: dict[str, Any] = {
    "scene_batch": 32,
    "canvas_batch": 64,
    "scene_size": [640, 1088],
    "canvas_size": [384, 192],
    "threads": 8,
    "prefetch": 4,
}
"""As in launch/configs/pretrain/paper_resnet50.yaml."""
DECODED = 1280 * 720 * 3
WORKING_VIEWS = 8
"""Of a thread in the mode `exact`, besides its decoded image."""
FIXED = 50e6
"""Indexes, annotations, and what the allocators keep."""


def memory_rows(scenes: str, canvases: str, steps: int) -> list[Row]:
    """Of a stream over two shard sets, whose URLs these are."""
    config = StreamConfig.model_validate(
        {
            **SETTINGS,
            "scenes": [{"shards": scenes, "weight": 1}],
            "canvases": [{"shards": canvases, "weight": 1}],
        }
    )
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        peak = processes.submit(_peak_above_imports, config, steps).result()
    return [
        Row(
            f"peak memory of one of {WORLD} ranks at the paper's sizes, above imports",
            exactly(peak / 1e6),
            "MB",
            stated_bytes(config) / 1e6,
            "lower",
            remark="the target is what the settings say",
        )
    ]


def stated_bytes(config: StreamConfig) -> float:
    """By the formula of `pipeline.loading`: views made ahead, and each thread with its sample."""
    scenes, canvases = config.scene_batch // WORLD, config.canvas_batch // WORLD
    scene, canvas = (3 * h * w for h, w in (config.scene_size, config.canvas_size))
    views = (config.prefetch + 2) * config.views.number * (scenes * scene + canvases * canvas)
    return views + config.threads * (DECODED + WORKING_VIEWS * scene) + FIXED


def _peak_above_imports(config: StreamConfig, steps: int) -> int:
    restart_peak()
    before = resident_bytes()
    stream = Stream.open(config, 0, WORLD)
    with stream.batches(0, steps) as batches:
        for _ in batches:
            pass
    return peak_bytes() - before
