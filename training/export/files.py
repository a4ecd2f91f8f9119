"""An export on disk: the tensors twice, the account of them, and the card that says what they are."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from pipeline.errors import UserError
from training.export.exported import Exported
from training.files import replacing

SUFFIXES = (".safetensors", ".pth", ".json", ".md")


def write_files(
    exported: Exported,
    stem: Path,
    origin: Mapping[str, Any],
    card: str,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """STEM.safetensors, STEM.pth as the target's loader wants it, STEM.json (the account) and STEM.md.

    `origin` says which run and step, `metadata` goes into the safetensors. A STEM.pth of another target goes.
    Raises UserError where they cannot be written.
    """
    # `save_file` would make a file that nobody else may read
    tensors = save(exported.tensors, {"format": "pt", **(metadata or {})})
    writers: dict[str, Callable[[Path], object]] = {
        ".safetensors": lambda path: path.write_bytes(tensors)
    }
    if exported.spec.pth is not None:
        writers[".pth"] = lambda path: _save_pth(exported, path)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        if exported.spec.pth is None:
            stem.with_name(stem.name + ".pth").unlink(missing_ok=True)
        files = [_publish(stem, suffix, write) for suffix, write in writers.items()]
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        text = json.dumps({**origin, **exported.account(), "sha256": hashes}, indent=1) + "\n"
        return [
            *files,
            _publish(stem, ".json", lambda path: path.write_text(text)),
            _publish(stem, ".md", lambda path: path.write_text(card)),
        ]
    except OSError as error:
        raise UserError(f"cannot write the export {stem}: {error}.") from None


def _save_pth(exported: Exported, path: Path) -> None:
    spec = exported.spec
    content: dict[str, Any] = dict(exported.tensors)
    if spec.wrapper:
        content = {spec.wrapper: exported.tensors, **spec.extra}
    torch.save(content, path, _use_new_zipfile_serialization=spec.pth == "new")


def _publish(stem: Path, suffix: str, write: Callable[[Path], object]) -> Path:
    path = stem.with_name(stem.name + suffix)
    with replacing(path) as temporary:
        write(temporary)
    return path
