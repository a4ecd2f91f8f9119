"""What is measured, and how much of it: generated releases, prepared for the sharding job."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from launch.benchmarks import releases
from sharding.datasets import ADAPTERS
from sharding.plan import PlanConfig
from sharding.prepare import PreparedSet, prepare
from sharding.recipe import SetRequest
from sharding.source import Source


@dataclass(frozen=True)
class Scale:
    pictures: int = 400
    """Of scenes, all different."""
    names: int = 4
    """Of each, so that there is work for a steady state."""
    shard_bytes: int = 64 << 20
    crops: int = 960
    shard_crops: int = 120
    huge: tuple[int, int] = releases.HUGE
    rounds: int = 9
    sessions: int = 3
    """Of Ray with one worker, and with two, in turns."""


FULL = Scale()
QUICK = Scale(pictures=100, names=2, crops=240, shard_crops=60, rounds=3, sessions=1)
TOY = Scale(
    pictures=4,
    names=1,
    shard_bytes=1 << 19,
    crops=8,
    shard_crops=4,
    huge=(720, 1280),
    rounds=1,
    sessions=1,
)
"""To try the command itself."""


class Bench:
    """The releases in `folder`, and a place for what is made of them."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.scale = scale
        self._folder = folder
        self.out = folder / "out"
        releases.write_scenes(folder / "scenes", scale.pictures, scale.names)
        releases.write_crops(folder / "crops", scale.crops)
        releases.write_huge(folder / "huge", scale.huge)

    def scenes(self, check: str) -> PreparedSet:
        config = PlanConfig.model_validate({"check": check, "shard_bytes": self.scale.shard_bytes})
        return self._prepare("crowdhuman", "scenes", config)

    def crops(self) -> PreparedSet:
        config = PlanConfig(shard_crops=self.scale.shard_crops)
        return self._prepare("msmt17", "crops", config)

    def huge(self) -> PreparedSet:
        """A shard an image."""
        return self._prepare("crowdhuman", "huge", PlanConfig(shard_bytes=1))

    def path(self, release: str, locator: str) -> Path:
        return self._folder / release / locator

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def _prepare(self, dataset: str, release: str, config: PlanConfig) -> PreparedSet:
        self.clear()
        source = Source(str(self._folder / release))
        return prepare(SetRequest(ADAPTERS[dataset], source, "train", str(self.out), config))
