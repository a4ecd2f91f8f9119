"""Generated look-alikes of the five native releases, for trying everything out without their data."""

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from sharding.miniature import crowdhuman, cuhk03, ecp, luperson, msmt17
from sharding.miniature.world import MiniatureConfig, TruthImage, TruthPerson

__all__ = ["MiniatureConfig", "TruthImage", "TruthPerson", "write"]

WRITERS: dict[str, Callable[[Path, MiniatureConfig], list[TruthImage]]] = {
    "crowdhuman": crowdhuman.write,
    "ecp": ecp.write,
    "msmt17": msmt17.write,
    "cuhk03": cuhk03.write,
    "luperson": luperson.write,
}


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    """Writes `root/{crowdhuman,ecp,...}` in native layout and returns what was drawn.

    The same settings write the same bytes. Raises UserError for an unknown dataset, and rather than
    mixing into a folder that has something in it.
    """
    for dataset in config.datasets:
        if dataset not in WRITERS:
            raise UserError(f"no miniature of `{dataset}`; there are {', '.join(WRITERS)}.")
        folder = root / dataset
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; name another folder, or remove it first.")
    return [image for dataset in config.datasets for image in WRITERS[dataset](root, config)]
