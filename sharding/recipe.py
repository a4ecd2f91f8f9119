"""A recipe: which releases become which shard sets, with settings shared and settings of their own."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import C, Config, apply_override, load_config, merge, parse_config
from pipeline.errors import UserError
from pipeline.stores.store import Location
from sharding.datasets import ADAPTERS
from sharding.datasets.base import Adapter
from sharding.plan import PlanConfig
from sharding.source import Source


@dataclass(frozen=True)
class SetRequest:
    """One split of one dataset, from where it lies to where its shards go."""

    adapter: Adapter
    source: Source
    split: str
    out: str
    config: PlanConfig
    expected: int | None = None
    """Images that it should become."""


class SetConfig(Config):
    dataset: str
    """Name of an adapter."""
    source: str
    """Folder of the native release, extracted or with its archives as downloaded; local or in a store."""
    split: str
    """One of the adapter's splits."""
    expected: int | None = Field(default=None, gt=0)
    """Images that it should become, to be held against what it does."""
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

    def requests(self, only: Iterable[str] = ()) -> list[SetRequest]:
        """Of the sets named in `only`, or of all. Raises UserError on an unknown set, dataset or split."""
        chosen = {name: find(self.sets, name, "set of the recipe") for name in only} or self.sets
        return [self._request(name, one) for name, one in chosen.items()]

    def _request(self, name: str, one: SetConfig) -> SetRequest:
        defaults = self.defaults.model_dump(exclude_unset=True)
        own = one.settings.model_dump(exclude_unset=True)
        settings = parse_config(PlanConfig, merge(defaults, own), f"sets.{name}")
        out = f"{self.out.rstrip('/')}/{one.dataset}/{one.split}"
        request = make_request(one.dataset, one.source, one.split, out, settings)
        refuse_recode(request.adapter, one.settings)
        return replace(request, expected=one.expected)


def load_recipe(path: str, overrides: Iterable[str]) -> RecipeConfig:
    return load_config(RecipeConfig, path, overrides)


def parse_settings(kind: type[C], overrides: Iterable[str]) -> C:
    """`seed=1`, `canvas.variants=2` ... as settings. Raises UserError."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    return parse_config(kind, tree, "--set")


def make_request(dataset: str, source: str, split: str, out: str, config: PlanConfig) -> SetRequest:
    """Paths become absolute: workers may run in another folder. Raises UserError."""
    adapter = find(ADAPTERS, dataset, "dataset")
    find(adapter.splits, split, f"split of {dataset}")
    return SetRequest(adapter, Source(absolute(source)), split, absolute(out), config)


def refuse_recode(adapter: Adapter, asked: PlanConfig) -> None:
    """Raises UserError if crops are asked by name to be recoded, in vain. A recipe's `defaults` may."""
    if adapter.task == "reid" and asked.recode is not None:
        raise UserError(
            f"recode: {asked.recode} is for scenes, and {adapter.name} holds re-ID crops, which become JPEG "
            "canvases of canvas.size and canvas.quality. Leave recode and max_side out."
        )


def absolute(url: str) -> str:
    return url if Location(url).scheme else str(Path(url).expanduser().absolute())


def find(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`; raises UserError with the nearest name that there is."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(table)}."
    raise UserError(f"{name!r} is not a {what}. {hint}")
