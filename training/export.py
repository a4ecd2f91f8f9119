"""Trained weights under the names that other code loads, with an account of every tensor.

A target is one function below. It says what it wants and where that lies in a trained model; the
account (mapped, added, dropped, left missing) and the refusal of anything incomplete are common.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import UserError

TRUNK, LAST_STAGE = "search.backbone.", "search.head."
"""Where the trained model keeps conv1 ... layer3, and layer4."""
RESNET_INPUT = {
    "channels": "RGB",
    "range": [0, 1],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "stride": "in the 3x3 convolution",
}


@dataclass(frozen=True)
class Exported:
    target: str
    tensors: dict[str, Tensor]
    """By the target's names, floats in fp32."""
    mapped: dict[str, str]
    """Target's name -> trained model's name."""
    added: tuple[str, ...]
    """Constants that the target has and the trained model need not: norms' batch counters."""
    dropped: tuple[str, ...]
    """Trained tensors that the target has no place for."""
    missing: tuple[str, ...]
    """Target's tensors left as the target initialises them."""
    input: Mapping[str, Any]
    """How the target must feed pixels."""

    def account(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "input": dict(self.input),
            "mapped": self.mapped,
            "added": list(self.added),
            "dropped": list(self.dropped),
            "missing": list(self.missing),
        }


def to_torchvision(trained: Mapping[str, Tensor], backbone: str) -> Exported:
    """The flat ResNet state dict that `torchvision.models.<backbone>` loads, all but `fc`."""
    if not backbone.startswith("resnet"):
        raise UserError(f"the torchvision target takes ResNets, and this run trained a {backbone}.")
    with torch.device("meta"):
        wanted = getattr(torchvision.models, backbone)(weights=None).state_dict()
    names = {
        name: (LAST_STAGE if name.startswith("layer4.") else TRUNK) + name
        for name in wanted
        if not name.startswith("fc.")
    }
    return _collect("torchvision", trained, wanted, names, RESNET_INPUT)


TARGETS: dict[str, Callable[[Mapping[str, Tensor], str], Exported]] = {
    "torchvision": to_torchvision,
}


def export(target: str, trained: Mapping[str, Tensor], backbone: str) -> Exported:
    """Raises UserError if the target is unknown or would not be covered in full."""
    if target not in TARGETS:
        raise UserError(f"no export target `{target}`; there are: {', '.join(TARGETS)}.")
    return TARGETS[target](trained, backbone)


def write_files(exported: Exported, stem: Path, origin: Mapping[str, Any]) -> list[Path]:
    """STEM.safetensors, STEM.pth and STEM.json, the account; `origin` says which run and step."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[Path], None]] = {
        ".safetensors": lambda path: save_file(exported.tensors, path, {"format": "pt"}),
        ".pth": lambda path: torch.save(exported.tensors, path),
    }
    files = {suffix: _publish(stem, suffix, write) for suffix, write in writers.items()}
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()}
    account = {**origin, **exported.account(), "sha256": hashes}
    text = json.dumps(account, indent=1) + "\n"
    return [*files.values(), _publish(stem, ".json", lambda path: path.write_text(text))]


def _collect(
    target: str,
    trained: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    names: Mapping[str, str],
    feed: Mapping[str, Any],
) -> Exported:
    """`wanted`: all of the target's tensors (shapes count); `names`: those shared -> trained name."""
    tensors: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, source in names.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = trained.get(source, torch.zeros((), dtype=torch.int64)).clone()
        elif source not in trained:
            wrong.append(f"{source} is absent")
        elif trained[source].shape != wanted[name].shape:
            has, wants = tuple(trained[source].shape), tuple(wanted[name].shape)
            wrong.append(f"{source} is {has} and {target} wants {wants}")
        elif not trained[source].isfinite().all():
            wrong.append(f"{source} holds values that are not finite")
        else:
            tensors[name] = trained[source].to(torch.float32, copy=True).contiguous()
    if wrong:
        raise UserError(
            f"nothing was exported: {len(wrong)} of the {len(names)} tensors that {target} shares with this "
            f"model cannot be given ({'; '.join(wrong[:3])}). Check that the checkpoint and the run's "
            "`backbone.name` belong together."
        )
    mapped = {name: source for name, source in names.items() if source in trained}
    return Exported(
        target=target,
        tensors=tensors,
        mapped=mapped,
        added=tuple(sorted(names.keys() - mapped.keys())),
        dropped=tuple(sorted(trained.keys() - set(mapped.values()))),
        missing=tuple(sorted(wanted.keys() - names.keys())),
        input=feed,
    )


def _publish(stem: Path, suffix: str, write: Callable[[Path], object]) -> Path:
    """Readers see the old file or the new one, never a part."""
    path = stem.with_name(stem.name + suffix)
    temporary = path.with_name(f".{path.name}.writing")
    write(temporary)
    os.replace(temporary, path)
    return path
