"""Trained weights of a person-search model: those of a run, or of one file that was exported from it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import UserError
from training.model.person_search import PersonSearchConfig
from training.model.weights import sha256_of, with_seen_statistics
from training.provenance import TrainedRun

SEARCH = "search."
"""Where a trained model keeps the part that searches."""
HEADER = "person_search"
"""Key of a safetensors file's metadata."""


@dataclass(frozen=True)
class TrainedWeights:
    path: Path
    """Of the checkpoint or the file."""
    sha256: str
    """Of the file with the tensors."""
    model: PersonSearchConfig
    scene_size: tuple[int, int]
    """Short and long side of the scenes that they were trained on."""
    name: str
    """Of the run."""
    step: int
    tensors: Callable[[], dict[str, Tensor]]
    """By the names of `PersonSearch`, on the CPU."""
    run: Callable[[], TrainedRun]
    """Looks for the run's shard sets, which may be far away."""


class Header(BaseModel):
    """What a file of weights says of itself, so that it can be used without its run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model: PersonSearchConfig
    scene_size: tuple[int, int]
    step: int
    re_estimated_on: int
    """Scenes that the norms' statistics were measured on anew; 0: they are those of training."""
    tensors_sha256: str
    run: TrainedRun

    def metadata(self) -> dict[str, str]:
        return {HEADER: self.model_dump_json()}


def header(weights: TrainedWeights, tensors: Mapping[str, Tensor], re_estimated_on: int) -> Header:
    """Of a file that holds `tensors`, made of `weights`."""
    return Header(
        model=weights.model,
        scene_size=weights.scene_size,
        step=weights.step,
        re_estimated_on=re_estimated_on,
        tensors_sha256=tensors_sha256(tensors),
        run=weights.run(),
    )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes and values, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.contiguous().numpy()
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def read_exported(path: Path) -> TrainedWeights:
    """Raises UserError if `path` was not written by `launch/export.py --target person_search`."""
    found = read_header(path)
    return TrainedWeights(
        path,
        sha256_of(path),
        found.model,
        found.scene_size,
        found.run.name,
        found.step,
        tensors=lambda: _read_tensors(path, found.tensors_sha256),
        run=lambda: found.run,
    )


def _read_tensors(path: Path, wanted: str) -> dict[str, Tensor]:
    tensors = load_file(path)
    if tensors_sha256(tensors) != wanted:
        raise UserError(f"{path} is damaged: its tensors are not those that were exported.")
    return tensors


def read_header(path: Path) -> Header:
    """Raises UserError as `read_exported` does."""
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(HEADER)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as weights: {str(error)[:200]}. {_WANTED}"
        ) from None
    if said is None:
        raise UserError(f"{path} holds tensors, but not which model they are of. {_WANTED}")
    try:
        return Header.model_validate_json(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path} was not written by this version of the code: {where or 'its header'}: {first['msg']}. "
            "Use the one that wrote it, or export the run again."
        ) from None


_WANTED = (
    "Name a file that `launch/export.py RUN --target person_search` wrote, a run folder, or a folder "
    "checkpoints/step-* in one."
)


def search_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of all that a checkpoint holds, the part that searches, by the names of `PersonSearch`.

    What norms know of scenes is what they know of canvases, if they saw no scenes.
    """
    return with_seen_statistics(
        {
            name.removeprefix(SEARCH): tensor
            for name, tensor in tensors.items()
            if name.startswith(SEARCH)
        }
    )
