"""Weights of another run as the first ones of a model: what is taken over, and whether it fits."""

from fnmatch import fnmatch
from typing import Literal

from torch import nn

from pipeline.errors import UserError
from training.changes import compare, spell
from training.model.person_search import PersonSearch, PersonSearchConfig
from training.model.weights import LoadedWeights, load_into
from training.provenance import TrainedRun
from training.trained import TrainedWeights

Part = Literal["backbone", "model"]
BACKBONE = ("backbone.name", "backbone.width", "backbone.groups")
FORM: dict[Part, tuple[str, ...]] = {
    "backbone": BACKBONE,
    "model": (*BACKBONE, "detector.anchor_*", "detector.roi_size*", "heads.*"),
}
"""Settings that weights are meant for, also where tensors of other settings would have the same shapes."""


def require_same_form(
    before: PersonSearchConfig, now: PersonSearchConfig, part: Part, path: str
) -> None:
    """Raises UserError if `part` was trained for other settings than it would be used with."""
    changed = compare(before.model_dump(mode="json"), now.model_dump(mode="json"))
    binding = {
        key: values
        for key, values in changed.items()
        if any(fnmatch(key, form) for form in FORM[part])
    }
    if binding:
        raise UserError(
            f"`start.weights`: {path} was trained with other settings of `hybrid.model`: "
            f"{'; '.join(spell(binding))} here. Set them as they were in that run."
        )


def fill(
    search: PersonSearch, part: Part, weights: TrainedWeights, run: TrainedRun | None
) -> LoadedWeights:
    """Takes `part` over out of `weights`, which `run` trained. Raises UserError if it does not fit."""
    backbone = nn.ModuleDict({"backbone": search.backbone, "head": search.head})
    net = backbone if part == "backbone" else search
    origin = f"`start.weights`: {weights.path}"
    number, unused = load_into(net, weights.tensors(), search.config.backbone.name, origin)
    return LoadedWeights(f"{weights.path}, {part}", weights.sha256, number, unused, run)
