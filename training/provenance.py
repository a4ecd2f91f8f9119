"""Whose data weights were trained on: those of a run, and of the runs whose weights it began with."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.settings import StreamConfig
from pipeline.shards import Manifest, ShardSet

STREAM_FILE, WEIGHTS_FILE = "stream.json", "weights.json"


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
    """All that the run in `folder` trains on, or was trained on before they were dropped.

    With what their shard sets say, where those can be read.
    """
    stored, found = _stored(folder), _find(stream)
    named = [
        _data_set(name, of["manifest"], found.get(name)) for name, of in stored["manifests"].items()
    ]
    earlier = (DataSet(**one) for one in stored.get("earlier", ()))
    return (*named, *(one for one in earlier if one.name not in stored["manifests"]))


def earlier_sets(
    folder: Path, stream: StreamConfig, step: int, kept: Collection[str]
) -> tuple[DataSet, ...]:
    """Those that the run in `folder` was trained on before `step` and that are not `kept`, after all that it
    had dropped before.

    stream: its settings until then. A set that cannot be read any more counts from step 0.
    """
    stored = _stored(folder)
    known = {one["name"]: DataSet(**one) for one in stored.get("earlier", ())}
    gone = stored["manifests"].keys() - set(kept)
    if gone:
        found = _find(stream)
        for one in data_sets(folder, stream):
            if one.name in gone and (one.name not in found or found[one.name].first_step < step):
                known[one.name] = one
    return tuple(known.values())


def _stored(folder: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((folder / STREAM_FILE).read_text())
    return stored


class _Found(NamedTuple):
    manifest: Manifest
    sha256: str
    first_step: int
    """Of the mixture that names it first."""


def _data_set(name: str, trained_on: str, found: _Found | None) -> DataSet:
    if found is None:
        return DataSet(name, None, None, False)
    manifest = found.manifest
    return DataSet(name, manifest.samples, manifest.licence, found.sha256 != trained_on)


def _find(stream: StreamConfig) -> dict[str, _Found]:
    """By `DATASET/SPLIT`, what can be read."""
    mixtures = (*stream.mixtures("detection"), *stream.mixtures("reid"))
    steps: dict[str, int] = {}
    for step, mixture in mixtures:
        for entry in mixture:
            steps.setdefault(entry.shards, step)
    found: dict[str, _Found] = {}
    for url, step in steps.items():
        try:
            shard_set = ShardSet(url)
            manifest, sha256 = shard_set.manifest, shard_set.manifest_sha256
        except (UserError, OSError):  # weights are used where the data need not be
            continue
        found[f"{manifest.dataset}/{manifest.split}"] = _Found(manifest, sha256, step)
    return found
