"""Generated look-alikes of the native releases, for trying everything out without their data."""

import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from sharding.miniature import (
    crowdhuman,
    cuhk03,
    cuhk_sysu,
    ecp,
    luperson,
    luperson_nl,
    msmt17,
    posetrack21,
    prw,
)
from sharding.miniature.world import MiniatureConfig, TruthImage, TruthPerson

__all__ = ["MiniatureConfig", "TruthImage", "TruthPerson", "write"]

UNFINISHED = ".unfinished"

WRITERS: dict[str, Callable[[Path, MiniatureConfig], list[TruthImage]]] = {
    "crowdhuman": crowdhuman.write,
    "ecp": ecp.write,
    "msmt17": msmt17.write,
    "cuhk03": cuhk03.write,
    "luperson": luperson.write,
    "prw": prw.write,
    "cuhk_sysu": cuhk_sysu.write,
    "luperson_nl": luperson_nl.write,
    "posetrack21": posetrack21.write,
}


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    """Writes `root/{crowdhuman,ecp,...}` in native layout and returns what was drawn.

    The same settings write the same bytes; releases appear whole, when all are drawn. Raises UserError
    for an unknown dataset, and rather than mixing into a folder that has something in it.
    """
    for dataset in config.datasets:
        if dataset not in WRITERS:
            raise UserError(f"no miniature of `{dataset}`; there are {', '.join(WRITERS)}.")
        folder = root / dataset
        nearest = next(p for p in (folder, *folder.parents) if p.exists())
        if not nearest.is_dir():
            raise UserError(f"{nearest} is a file; name a folder for the releases.")
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; name another folder, or remove it first.")
    unfinished = root / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    images = [i for dataset in config.datasets for i in WRITERS[dataset](unfinished, config)]
    for dataset in config.datasets:
        (unfinished / dataset).rename(root / dataset)
    unfinished.rmdir()
    return images
