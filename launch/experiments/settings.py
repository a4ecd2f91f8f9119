"""What is compared with what, on which worlds: settings that are fixed before the runs.

A claim that came later says so.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from pipeline.config import Config, load_config, parse_config, read_yaml
from pipeline.errors import UserError
from sharding.miniature import MiniatureConfig
from training.run_config import RunConfig
from training.start import Part

CONFIGS = Path(__file__).parents[1] / "configs/experiment"
SOURCES = ("crowdhuman", "ecp", "msmt17", "cuhk03", "luperson")
TARGET = "prw"
TARGET_SHARDS = f"shards/{TARGET}/train"
SHARDS = "shards.yaml"
VERSION = 1
"""Raised where code or a default changes what numbers mean: records of another one are stale."""
KEPT = 100
"""Checkpoints: interruptions write more, which must not push the judged ones out."""
NOT_DECISIVE: Any = {
    "run": True,
    "log": True,
    "checkpoint": True,
    "start": {"weights"},
    "engine": {"threads", "timeout_s", "speed", "max_nonfinite"},
    "stream": {
        "threads",
        "workers",
        "prefetch",
        "cache",
        "check_tars",
        "max_bad_share",
        "max_bad_run",
    },
}
"""Settings of a run that do not decide what it trains."""


class RecipeConfig(Config):
    """A pre-training."""

    set: tuple[str, ...] = ()
    """Settings in which it differs from `pretrain.yaml`."""
    shards: str | None = None
    """File of shard sets that it needs beside those of `shards.yaml`."""


class ArmConfig(Config):
    """A fine-tuning."""

    says: str
    """In a table."""
    recipe: str | None = None
    """The pre-training whose weights it begins with; null: random ones."""
    part: Part = "model"
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Of the target's training images."""
    set: tuple[str, ...] = ()
    """Settings in which it differs from `finetune.yaml`."""


class ClaimConfig(Config):
    """That an arm's mAP is above another's, on average over worlds 0 to `worlds` less one and no others."""

    better: str
    than: str
    worlds: PositiveInt
    added: str | None = None
    """When, if some of the tiers' runs had been seen."""


class TierConfig(Config):
    """One table of the results."""

    worlds: PositiveInt
    """World 0 to this number less one; each has people, cameras and a pre-training of its own."""
    beside: tuple[str, ...] = ()
    """Arms of another tier to compare with."""
    own: tuple[str, ...]
    claims: tuple[ClaimConfig, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        return (*self.beside, *self.own)


class ExperimentConfig(Config):
    miniature: dict[str, Any]
    """Settings of `python -m sharding miniature`, but for the seed."""
    first_seed: int
    """Of world 0; those of worlds that settings were chosen on lie elsewhere."""
    recipes: dict[str, RecipeConfig]
    arms: dict[str, ArmConfig]
    tiers: dict[Literal["A", "B", "C"], TierConfig]

    @model_validator(mode="after")
    def _check(self) -> "ExperimentConfig":
        for name, arm in self.arms.items():
            if arm.recipe is not None and arm.recipe not in self.recipes:
                raise ValueError(f"arm {name}: no recipe {arm.recipe}")
        for tier in self.tiers.values():
            named = [*tier.arms, *(arm for one in tier.claims for arm in (one.better, one.than))]
            if unknown := sorted(set(named) - set(self.arms)):
                raise ValueError(f"no arms {', '.join(unknown)}")
        return self


@dataclass(frozen=True)
class Experiment:
    """All settings, resolved; `folder` holds the files beside `experiment.yaml`."""

    config: ExperimentConfig
    folder: Path

    @classmethod
    def read(cls, folder: Path = CONFIGS) -> "Experiment":
        """Raises UserError if anything in the files is no setting."""
        found = cls(load_config(ExperimentConfig, folder / "experiment.yaml"), folder)
        found.miniature(0)
        for name in found.config.arms:
            found.judged_steps(name)
            found.deciding_settings(name, 0)
        return found

    def seed(self, world: int) -> int:
        return self.config.first_seed + world

    def miniature(self, world: int) -> MiniatureConfig:
        tree = {
            "datasets": [*SOURCES, TARGET],
            **self.config.miniature,
            "seed": self.seed(world),
        }
        return parse_config(MiniatureConfig, tree, "miniature")

    def place(self, world: int) -> str:
        """Name of a world's folder: other pictures or shards lie in another one."""
        pictures = self.miniature(world).model_dump(mode="json")
        parts = [VERSION, pictures, read_yaml(self.folder / SHARDS)]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return f"world-{world}-{digest[:8]}"

    def pretrain_settings(self, recipe: str, world: int) -> list[str]:
        """What `launch/pretrain.py` is told besides its file and its run."""
        return [*self.config.recipes[recipe].set, *self._seeds(world)]

    def finetune_settings(self, arm: str, world: int) -> list[str]:
        """What `launch/finetune.py` is told besides its file and its run."""
        config = self.config.arms[arm]
        settings = [*config.set, *self._seeds(world)]
        if config.recipe is not None:
            settings += [f"start.weights=pretrain-{config.recipe}", f"start.part={config.part}"]
        if config.fraction < 1:
            selection = selection_name(config.fraction)
            entry = {"shards": TARGET_SHARDS, "weight": 1, "selection": selection}
            settings.append(f"stream.scenes={json.dumps([entry])}")
        return settings

    def _seeds(self, world: int) -> list[str]:
        return [f"seed={self.seed(world)}", f"stream.seed={self.seed(world)}"]

    def pretraining(self, recipe: str, world: int) -> RunConfig:
        settings = self.pretrain_settings(recipe, world)
        return load_config(RunConfig, self.folder / "pretrain.yaml", settings)

    def finetuning(self, arm: str, world: int) -> RunConfig:
        settings = self.finetune_settings(arm, world)
        return load_config(RunConfig, self.folder / "finetune.yaml", settings)

    def judged_steps(self, arm: str) -> tuple[int, int]:
        """Steps of fine-tuning after which it is evaluated: half of them, and all. Raises UserError."""
        config = self.finetuning(arm, 0)
        half, odd = divmod(config.steps, 2)
        if odd or config.checkpoint.every != half or config.checkpoint.keep < KEPT:
            raise UserError(
                f"arm {arm}: `checkpoint` must write one after half of its {config.steps} steps, "
                f"and keep {KEPT}."
            )
        return half, config.steps

    def deciding_settings(self, arm: str, world: int) -> dict[str, Any]:
        """All settings that an arm's numbers are made of, but for those that have their defaults."""
        recipe = self.config.arms[arm].recipe
        parts: dict[str, Any] = {
            "version": VERSION,
            "miniature": self.miniature(world).model_dump(mode="json", exclude_defaults=True),
            "shards": read_yaml(self.folder / SHARDS),
            "finetune": decisive(self.finetuning(arm, world)),
        }
        if recipe is not None:
            parts["pretrain"] = decisive(self.pretraining(recipe, world))
            if more := self.config.recipes[recipe].shards:
                parts["more_shards"] = read_yaml(self.folder / more)
        return parts


def selection_name(fraction: float) -> str:
    """File, in the world's folder, of the samples of a share of the target."""
    return f"{TARGET}-{fraction}.selection"


def decisive(config: RunConfig) -> dict[str, Any]:
    """What decides the weights that a run ends with, but for defaults and for those that it begins with."""
    return config.model_dump(mode="json", exclude_defaults=True, exclude=NOT_DECISIVE)
