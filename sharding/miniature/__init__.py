"""Generated look-alikes of the five native releases, for trying everything out without their data."""

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from sharding.miniature import crowdhuman, msmt17
from sharding.miniature.world import MiniatureConfig, TruthImage, TruthPerson

__all__ = ["MiniatureConfig", "TruthImage", "TruthPerson", "write"]

WRITERS: dict[str, Callable[[Path, MiniatureConfig], list[TruthImage]]] = {
    "crowdhuman": crowdhuman.write,
    "msmt17": msmt17.write,
}


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    """Writes `root/{crowdhuman,ecp,...}` in native layout and returns what was drawn.

    The same settings write the same bytes. Raises UserError for an unknown dataset.
    """
    for dataset in config.datasets:
        if dataset not in WRITERS:
            raise UserError(f"no miniature of `{dataset}`; there are {', '.join(WRITERS)}.")
    return [image for dataset in config.datasets for image in WRITERS[dataset](root, config)]
