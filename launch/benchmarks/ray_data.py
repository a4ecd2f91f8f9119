"""The same pass-through by Ray Data. It needs pandas, which this project does not."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.data

from launch.benchmarks.peers import Scene

BLOCKS = 16


def write_by_ray_data(scenes: Sequence[Scene], out: Path) -> int:
    """In the running Ray session. The JSON comes coded, as Ray Data's own encoder of it fails."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [
        {"__key__": scene.key, "path": str(scene.path), "json": json.dumps(scene.record).encode()}
        for scene in scenes
    ]
    images = ray.data.from_items(rows, override_num_blocks=BLOCKS).map(_read)
    images.write_webdataset(str(out), encoder=None)
    return len(scenes)


def _read(row: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": row["__key__"], "json": row["json"], "jpg": Path(row["path"]).read_bytes()}
