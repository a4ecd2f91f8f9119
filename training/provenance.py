"""Whose data weights were trained on: those of a run, and of the runs whose weights it began with."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.settings import StreamConfig
from pipeline.shards import Manifest, ShardSet

WEIGHTS_FILE = "weights.json"


@dataclass(frozen=True)
class DataSet:
    name: str
    """`DATASET/SPLIT`"""
    samples: int | None
    """None: its shard set could not be read any more."""
    licence: str | None
    """The shard set's note."""
    changed: bool
    """Whether samples and note are of a later generation than the run saw."""


@dataclass(frozen=True)
class TrainedRun:
    """What must be known of a run to use weights that it trained, also when its folder is gone."""

    name: str
    data: tuple[DataSet, ...]
    weights: dict[str, Any] | None
    """Those that it began with: what its own weights.json says. None: random ones."""


def trained_run(folder: Path, stream: StreamConfig) -> TrainedRun:
    return TrainedRun(folder.resolve().name, data_sets(folder, stream), first_weights(folder))


def first_weights(folder: Path) -> dict[str, Any] | None:
    """What the run in `folder` began with; None: random weights."""
    path = folder / WEIGHTS_FILE
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def data_sets(folder: Path, stream: StreamConfig) -> tuple[DataSet, ...]:
    """All that the run in `folder` trains on, with what their shard sets say where they can be read."""
    stored = json.loads((folder / "stream.json").read_text())["manifests"]
    found = {f"{m.dataset}/{m.split}": (m, sha256) for m, sha256 in _manifests(stream)}
    return tuple(
        _data_set(name, of["manifest"], *found.get(name, (None, ""))) for name, of in stored.items()
    )


def _data_set(name: str, trained_on: str, manifest: Manifest | None, sha256: str) -> DataSet:
    if manifest is None:
        return DataSet(name, None, None, False)
    return DataSet(name, manifest.samples, manifest.licence, sha256 != trained_on)


def _manifests(stream: StreamConfig) -> Iterator[tuple[Manifest, str]]:
    mixtures = [mixture for _, mixture in (*stream.mixtures("detection"), *stream.mixtures("reid"))]
    for url in dict.fromkeys(entry.shards for mixture in mixtures for entry in mixture):
        try:
            shard_set = ShardSet(url)
            yield shard_set.manifest, shard_set.manifest_sha256
        except (UserError, OSError):  # weights are used where the data need not be
            continue
