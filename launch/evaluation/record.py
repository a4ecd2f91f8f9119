"""What was evaluated and on what, for the record; and what keeps its numbers from being the benchmark's."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.shards import Manifest, ShardSet, parquet_bytes
from training.environment import DECIDING_PACKAGES, git_commit
from training.evaluation.detections import EvaluationConfig, write_whole
from training.evaluation.results import Outcome
from training.evaluation.weights import Weights


def describe(
    weights: Weights, shard_set: ShardSet, config: EvaluationConfig, device: torch.device
) -> dict[str, Any]:
    """What was evaluated, on what, by what: the same for any number of ranks."""
    manifest, trained = shard_set.manifest, weights.trained
    settings = config.model_dump(mode="json") | {"size": list(config.scene_size(weights))}
    gpu = device.type == "cuda"
    return {
        "weights": {"run": trained.name, "step": trained.step, "sha256": trained.sha256},
        "data": {
            "dataset": manifest.dataset,
            "split": manifest.split,
            "manifest_sha256": shard_set.manifest_sha256,
            "generation": manifest.generation,
            "samples": manifest.samples,
            "quarantined": manifest.quarantined,
            "differs_from_published": differing_counts(manifest),
        },
        "settings": settings,
        "environment": {
            "device": torch.cuda.get_device_name(device) if gpu else "cpu",
            "precision": "tf32" if torch.backends.cudnn.allow_tf32 else "fp32",
            "packages": {name: version(name) for name in DECIDING_PACKAGES},
            "commit": git_commit(),
        },
    }


def differing_counts(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {"what": check.what, "published": check.published, "found": check.found}
        for check in manifest.counts
        if check.published != check.found
    ]


def warnings(results: dict[str, Any]) -> list[str]:
    """What keeps the numbers from being the benchmark's."""
    found = []
    unreadable, data = results["images"]["unreadable"], results["data"]
    if unreadable:
        first = unreadable[0]
        found.append(
            f"{len(unreadable)} images could not be read, {first['key']} for one: {first['reason']}. "
            "Nobody is found in them, and who is known to be there counts as missed."
        )
        found += _uncounted(results)
    if differs := data["differs_from_published"]:
        counts = (f"{one['found']:,} {one['what']} of {one['published']:,}" for one in differs)
        found.append(f"this is not the release as published: {', '.join(counts)}.")
    for name, one in results["search"].items():
        if lost := len(one["queries_without_match"]):
            found.append(
                f"{name}: {lost} queries have no match in their gallery, and do not count."
            )
        if lost := len(one["queries_unreadable"]):
            found.append(f"{name}: the images of {lost} queries could not be read; their AP is 0.")
    return found


def _uncounted(results: dict[str, Any]) -> list[str]:
    """That nobody knows who is in some of the images."""
    unknown = [one for one in results["images"]["unreadable"] if not one["annotated"]]
    if not unknown:
        return []
    counts = [n for n, one in results["search"].items() if one["places_from"] == "annotations"]
    places = f", nor in {'; '.join(counts)}, whose places are the annotated ones" if counts else ""
    return [
        f"for {len(unknown)} of these images there is no annotation: whoever is there does not count in "
        f"detection{places}."
    ]


def write_queries(found: Outcome, folder: Path) -> None:
    """A file a protocol, and no other: one of an earlier evaluation may be of other weights."""
    names = [one.name.replace(", ", "-").replace(" ", "-") for one in found.protocols]
    files = [folder / f"{name}.parquet" for name in names]
    for old in set(folder.glob("*.parquet")) - set(files):
        old.unlink()
    for file, one in zip(files, found.protocols):
        write_whole(file, parquet_bytes(one.table()))
