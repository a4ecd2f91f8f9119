"""Trained weights that a backbone starts from: torchvision's, or a file; nothing is unpickled."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from pipeline.errors import UserError
from training.provenance import TrainedRun

ENUM_MEMBER = "IMAGENET1K_V1"
WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts put the weights among other things."""
DATA_PARALLEL = "module."
CANVASES = "canvas_"
"""What the names of canvases' running statistics have more than those of the scenes'."""
COUNTER = "num_batches_tracked"
"""Of batches of scenes that a norm has seen."""
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class LoadedWeights:
    """Where a backbone's first weights are from, for the record."""

    origin: str
    """URL or path."""
    sha256: str
    """Of their file."""
    loaded: int
    """Tensors that the backbone took."""
    unused: tuple[str, ...]
    """Tensors that it has no place for: the classifier's."""
    run: TrainedRun | None = None
    """Which trained them, if one of ours did."""


def imagenet_file(network: str) -> tuple[Path, str]:
    """torchvision's ImageNet weights of a network, downloaded unless they are there, and their URL."""
    url = torchvision.models.get_model_weights(network)[ENUM_MEMBER].url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[1]
    hash_prefix = path.stem.rsplit("-", 1)[1]
    advice = (
        f"Fetch {url} where there is a network and put it into {folder} on every machine, or set "
        "`backbone.weights` to the file."
    )
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"ImageNet weights of {network} could not be downloaded ({error}). {advice}"
            ) from None
    if not sha256_of(path).startswith(hash_prefix):
        raise UserError(
            f"{path} is damaged: its sha256 does not begin with {hash_prefix}. {advice}"
        )
    return path, url


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name. Raises UserError where there are none."""
    if not path.is_file():
        raise UserError(f"`backbone.weights`: there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # the benchmark runs without it

            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler and safetensors each raise kinds of their own
        raise UserError(
            f"`backbone.weights`: {path} cannot be read as tensors alone: {str(error)[:200]}"
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(weights, dict) and isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
    if not isinstance(weights, dict):
        raise UserError(f"`backbone.weights`: {path} holds no tensors by name.")
    return {
        str(name).removeprefix(DATA_PARALLEL): value
        for name, value in weights.items()
        if isinstance(value, Tensor)
    }


def load_into(
    net: nn.Module, weights: dict[str, Tensor], network: str, origin: str
) -> tuple[int, tuple[str, ...]]:
    """Fills every tensor of `net`: how many, and the names that it has no place for.

    Statistics of canvases start as the scenes' where `weights` has none. Raises UserError, whose message
    begins with `origin`.
    """
    own = net.state_dict()
    wanted = {name for name in own if not _is_our_own(name)}
    absent = sorted(wanted - weights.keys())
    if absent:
        raise UserError(
            f"{origin} is not a {network}: {len(absent)} of {len(wanted)} tensors are "
            f"absent, {absent[0]} for one."
        )
    misshapen = [n for n in sorted(wanted) if weights[n].shape != own[n].shape]
    if misshapen:
        name = misshapen[0]
        raise UserError(
            f"{origin} is another {network}: {len(misshapen)} of {len(wanted)} tensors "
            f"differ in shape, {name} for one: {tuple(weights[name].shape)} in the file, "
            f"{tuple(own[name].shape)} wanted."
        )
    infinite = [n for n in sorted(wanted) if not weights[n].isfinite().all()]
    if infinite:
        raise UserError(f"{origin} holds values that are not finite in {infinite[0]}.")
    net.load_state_dict({name: weights[name] for name in wanted}, strict=False)
    canvases = {name for name in own if CANVASES in name}
    given = {n: weights.get(n, weights[n.replace(CANVASES, "")]) for n in canvases}
    net.load_state_dict(given, strict=False)
    unused = sorted(n for n in weights if n not in wanted and not _is_our_own(n))
    return len(wanted), tuple(unused)


def with_seen_statistics(trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Norms that saw no scenes have statistics of scenes that are not the trained weights': those of
    canvases take their place."""
    found = dict(trained)
    unseen = [name for name, seen in trained.items() if name.endswith(COUNTER) and seen == 0]
    for norm in (name.removesuffix(COUNTER) for name in unseen):
        for statistic in STATISTICS:
            own = trained[norm + statistic]
            found[norm + statistic] = trained.get(f"{norm}{CANVASES}{statistic}", own)
    return found


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_our_own(name: str) -> bool:
    """Statistics of canvases, and the counter of batches."""
    return CANVASES in name or name.endswith(COUNTER)
