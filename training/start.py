"""Weights of another run as the first ones of a model: what is taken over, and whether it fits."""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Literal

from torch import Tensor, nn

from pipeline.errors import UserError
from training.changes import compare, spell
from training.checkpoint import Checkpoint
from training.model.person_search import PersonSearch, PersonSearchConfig
from training.model.weights import LoadedWeights, load_into, with_seen_statistics
from training.provenance import TrainedRun

SEARCH = "search."
"""Where a trained model keeps the part that searches."""
Part = Literal["backbone", "model"]
BACKBONE = ("backbone.name", "backbone.width", "backbone.groups")
FORM: dict[Part, tuple[str, ...]] = {
    "backbone": BACKBONE,
    "model": (*BACKBONE, "detector.anchor_*", "detector.roi_size*", "heads.*"),
}
"""Settings that weights are meant for, also where tensors of other settings would have the same shapes."""


def search_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of all that a checkpoint holds, the part that searches, by the names of `PersonSearch`.

    What norms know of scenes is what they know of canvases, if they saw no scenes.
    """
    return with_seen_statistics(
        {
            name.removeprefix(SEARCH): tensor
            for name, tensor in tensors.items()
            if name.startswith(SEARCH)
        }
    )


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
    search: PersonSearch, part: Part, checkpoint: Checkpoint, run: TrainedRun | None
) -> LoadedWeights:
    """Takes `part` over out of a checkpoint of `run`. Raises UserError if it does not fit."""
    backbone = nn.ModuleDict({"backbone": search.backbone, "head": search.head})
    net = backbone if part == "backbone" else search
    origin = f"`start.weights`: {checkpoint.path}"
    tensors = search_tensors(checkpoint.model())
    number, unused = load_into(net, tensors, search.config.backbone.name, origin)
    return LoadedWeights(f"{checkpoint.path}, {part}", checkpoint.sha256, number, unused, run)
