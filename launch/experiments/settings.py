"""What is compared with what, on which worlds: settings that are fixed before the first run."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from pipeline.config import Config, load_config, parse_config, read_yaml
from pipeline.errors import UserError
from sharding.miniature import MiniatureConfig
from training.run import RunConfig
from training.start import Part

CONFIGS = Path(__file__).parents[1] / "configs/experiment"
SOURCES = ("crowdhuman", "ecp", "msmt17", "cuhk03", "luperson")
TARGET = "prw"


class RecipeConfig(Config):
    """A pre-training."""

    set: tuple[str, ...] = ()
    """Settings in which it differs from `pretrain.yaml`."""


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
    """That an arm is better than another, in every world or on average."""

    better: str
    than: str
    worlds: PositiveInt
    """How many it takes before anything is said."""


class TierConfig(Config):
    """One table of the results."""

    title: str
    worlds: PositiveInt
    """World 0 to this number less one; each has people, cameras and a pre-training of its own."""
    arms: tuple[str, ...]
    claims: tuple[ClaimConfig, ...] = ()


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
            found.decides(name, 0)
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

    def pretrain_settings(self, recipe: str, world: int) -> list[str]:
        """What `launch/pretrain.py` is told besides its file."""
        return [*self.config.recipes[recipe].set, *self._seeds(world)]

    def finetune_settings(self, arm: str, world: int) -> list[str]:
        """What `launch/finetune.py` is told besides its file."""
        return [*self.config.arms[arm].set, *self._seeds(world)]

    def _seeds(self, world: int) -> list[str]:
        return [f"seed={self.seed(world)}", f"stream.seed={self.seed(world)}"]

    def pretraining(self, recipe: str, world: int) -> RunConfig:
        settings = self.pretrain_settings(recipe, world)
        return load_config(RunConfig, self.folder / "pretrain.yaml", settings)

    def finetuning(self, arm: str, world: int) -> RunConfig:
        settings = self.finetune_settings(arm, world)
        return load_config(RunConfig, self.folder / "finetune.yaml", settings)

    def moments(self, arm: str, world: int) -> tuple[int, int]:
        """Steps of fine-tuning after which it is evaluated: half of them, and all. Raises UserError."""
        config = self.finetuning(arm, world)
        half, odd = divmod(config.steps, 2)
        if odd or config.checkpoint.every != half or config.checkpoint.keep < 2:
            raise UserError(
                f"arm {arm}: `checkpoint` must keep 2, one after half of the {config.steps} steps."
            )
        return half, config.steps

    def decides(self, arm: str, world: int) -> str:
        """sha256 of all settings that an arm's numbers are made of."""
        config = self.config.arms[arm]
        self.moments(arm, world)
        parts: list[Any] = [
            self.miniature(world).model_dump(mode="json"),
            read_yaml(self.folder / "shards.yaml"),
            self.finetuning(arm, world).model_dump(mode="json"),
            config.model_dump(mode="json", exclude={"says"}),
        ]
        if config.recipe is not None:
            parts.append(self.pretraining(config.recipe, world).model_dump(mode="json"))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
