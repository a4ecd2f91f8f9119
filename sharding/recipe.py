"""A recipe: which releases become which shard sets, with settings shared and settings of their own."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import C, Config, apply_override, load_config, parse_config
from pipeline.errors import UserError
from sharding.datasets import ADAPTERS
from sharding.datasets.base import Adapter
from sharding.plan import PlanConfig


@dataclass(frozen=True)
class SetRequest:
    """One split of one dataset, from where it lies to where its shards go."""

    adapter: Adapter
    source: Path
    split: str
    out: str
    config: PlanConfig


class SetConfig(Config):
    dataset: str
    """Name of an adapter."""
    source: str
    """Folder of the native release."""
    split: str
    """One of the adapter's splits."""
    settings: PlanConfig = PlanConfig()
    """What differs from the recipe's `defaults`."""


class RecipeConfig(Config):
    out: str
    """Root URL; a set goes to OUT/DATASET/SPLIT."""
    workers: int | None = Field(default=None, gt=0)
    """Tasks at a time; default: every core."""
    defaults: PlanConfig = PlanConfig()
    """Settings of all sets."""
    sets: dict[str, SetConfig] = Field(min_length=1)
    """Shard sets by a name of the user's choice, so that `--set sets.NAME.source=...` finds them."""

    def requests(self) -> list[SetRequest]:
        """Raises UserError on an unknown dataset or split."""
        return [self._request(name, one) for name, one in self.sets.items()]

    def _request(self, name: str, one: SetConfig) -> SetRequest:
        defaults = self.defaults.model_dump(exclude_unset=True)
        own = one.settings.model_dump(exclude_unset=True)
        settings = parse_config(PlanConfig, _merge(defaults, own), f"sets.{name}")
        out = f"{self.out.rstrip('/')}/{one.dataset}/{one.split}"
        return make_request(one.dataset, one.source, one.split, out, settings)


def load_recipe(path: str, overrides: Iterable[str]) -> RecipeConfig:
    return load_config(RecipeConfig, path, overrides)


def parse_settings(kind: type[C], overrides: Iterable[str]) -> C:
    """`seed=1`, `canvas.variants=2` ... as settings. Raises UserError."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    return parse_config(kind, tree, "--set")


def make_request(dataset: str, source: str, split: str, out: str, config: PlanConfig) -> SetRequest:
    """Paths become absolute: workers may run in another folder."""
    adapter = find(ADAPTERS, dataset, "dataset")
    find(adapter.splits, split, f"split of {dataset}")
    if "://" in source:
        raise UserError(
            f"{source}: a source is a local folder for now. Mount the store or copy the release here, and "
            "name that folder."
        )
    if "://" not in out:
        out = str(Path(out).expanduser().absolute())
    return SetRequest(adapter, Path(source).expanduser().absolute(), split, out, config)


def find(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`; raises UserError with the nearest name that there is."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(table)}."
    raise UserError(f"{name!r} is not a {what}. {hint}")


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in own.items():
        nested = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merge(base[name], value) if nested else value
    return merged
