"""Weight files of ShuffleNet v1 in the layout of its authors' repository, read as our own.

megvii-model/ShuffleNet-Series, ShuffleNetV1: `first_conv.{0,1}`, `features.N.branch_main_1.{0,1,3,4}`,
`features.N.branch_main_2.{0,1}`, `classifier.0`. Two things differ from the network here besides names.
Its input is BGR from 0 to 255 with no mean taken off. And it deals channels out where the paper's figure 1
interleaves them; moving whole filters inside their groups turns one into the other.
"""

import torch
from torch import Tensor

from pipeline.errors import UserError
from training.model.backbones.shufflenet_v1 import UNITS, shuffle

MARK = "first_conv.0.weight"
PARTS = {
    "branch_main_1.0": "conv1",
    "branch_main_1.1": "bn1",
    "branch_main_1.3": "conv2",
    "branch_main_1.4": "bn2",
    "branch_main_2.0": "conv3",
    "branch_main_2.1": "bn3",
}
STEM = {"first_conv.0": "conv1", "first_conv.1": "bn1"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def in_own_layout(weights: dict[str, Tensor], groups: int, origin: str) -> dict[str, Tensor]:
    """Names, input and shuffle as here; a file that is so already passes. Raises UserError.

    All but the outermost ring of conv1's output is exact: it pads with black there, and with the mean here.
    """
    if MARK not in weights:
        return weights
    try:
        renamed = {_own_name(name): value for name, value in weights.items()}
        _take_our_input(renamed)
        for stage, units in UNITS.items():
            for unit in range(units):
                _interleave(renamed, f"{stage}.{unit}.", groups, origin)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"`backbone.weights`: {origin} is not a whole ShuffleNet v1: {error}."
        ) from None
    return renamed


def _own_name(name: str) -> str:
    module, _, tensor = name.rpartition(".")
    if module in STEM:
        return f"{STEM[module]}.{tensor}"
    if not module.startswith("features."):
        return name
    _, number, part = module.split(".", 2)
    rest = int(number)
    for stage, units in UNITS.items():
        if rest < units:
            return f"{stage}.{rest}.{PARTS.get(part, part)}.{tensor}"
        rest -= units
    return name


def _take_our_input(weights: dict[str, Tensor]) -> None:
    """conv1 of normalised RGB equals theirs of BGR; what the mean adds is taken off by bn1."""
    rgb = weights["conv1.weight"].double().flip(1)
    mean, std = (
        255 * torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in (MEAN, STD)
    )
    weights["conv1.weight"] = (rgb * std).float()
    added = (rgb * mean).sum((1, 2, 3))
    weights["bn1.running_mean"] = (weights["bn1.running_mean"].double() - added).float()


def _interleave(weights: dict[str, Tensor], unit: str, groups: int, origin: str) -> None:
    """Reorders a unit's hidden channels so that our shuffle brings each where theirs does.

    Their shuffle stands behind the depthwise convolution, ours before it.
    """
    order = _hidden_order(len(weights[f"{unit}conv2.weight"]), groups)
    if order is None:
        raise UserError(
            f"`backbone.weights`: the channels of {origin}, with {groups} groups, cannot be put into the "
            "order of the paper's shuffle. The published files of 3 groups can, at every width."
        )
    after = shuffle(order[None, :, None, None], groups).flatten()
    for names, index in ((("conv1", "bn1"), order), (("conv2", "bn2"), after)):
        for name in weights:
            if name.startswith(tuple(f"{unit}{n}." for n in names)) and weights[name].ndim:
                weights[name] = weights[name][index]
    column = (after // groups).view(groups, -1)
    blocks = weights[f"{unit}conv3.weight"].unflatten(0, (groups, -1))
    moved = [block[:, own] for block, own in zip(blocks, column)]
    weights[f"{unit}conv3.weight"] = torch.cat(moved)


def _hidden_order(hidden: int, groups: int) -> Tensor | None:
    """(hidden,) their channel for each of ours, in the same group of conv1 and met by the same of conv3.

    Channel c of theirs goes to conv3's group c mod groups. None if the groups exchange unequal numbers.
    """
    channel = torch.arange(hidden)
    group = channel // (hidden // groups)
    met = torch.empty_like(channel)
    met[shuffle(channel[None, :, None, None], groups).flatten()] = group
    theirs, ours = group * groups + channel % groups, group * groups + met
    if not torch.equal(theirs.bincount(minlength=groups**2), ours.bincount(minlength=groups**2)):
        return None
    order = torch.empty_like(channel)
    order[ours.argsort(stable=True)] = theirs.argsort(stable=True)
    return order
