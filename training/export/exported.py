"""Trained weights under the names of a target, with an account of every tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from training.export.targets import (
    ANCHOR_RATIOS,
    ANCHOR_SIZES,
    OWN,
    ROI_SIZE,
    Block,
    PartName,
    Target,
    find_target,
)
from training.model.person_search import IMAGENET_STD, PersonSearchConfig
from training.model.weights import COUNTER

NORM_EPS = 1e-5
"""Of our batch norms and of every target's."""


@dataclass(frozen=True)
class Row:
    """Of the coverage table: a module of the target."""

    name: str
    source: str
    how: str
    given: int
    """Tensors."""
    wanted: int


@dataclass(frozen=True)
class Exported:
    target: str
    part: PartName
    spec: Target
    tensors: dict[str, Tensor]
    """By the target's names, floats in fp32."""
    coverage: tuple[Row, ...]
    mapped: dict[str, str]
    """Target's name -> trained model's name, with + where it is made of several."""
    added: tuple[str, ...]
    """Constants that the target has and the trained model need not: norms' batch counters."""
    dropped: tuple[str, ...]
    """Trained tensors that the target has no place for."""
    missing: Mapping[str, str]
    """What is left as the target initialises it -> why."""

    def account(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "part": self.part,
            "input": dict(self.spec.input),
            "coverage": [vars(row) for row in self.coverage],
            "mapped": self.mapped,
            "added": list(self.added),
            "dropped": list(self.dropped),
            "missing": dict(self.missing),
        }


def export(
    target: str,
    part: PartName | None,
    trained: Mapping[str, Tensor],
    model: PersonSearchConfig,
) -> Exported:
    """`part`: None for all that the target takes. Raises UserError if it would not be covered in full."""
    spec = find_target(target, model)
    chosen = part or spec.default_part
    if chosen not in spec.parts:
        raise UserError(
            f"--part {chosen} is not for the {target} target, which takes the {spec.default_part} alone: "
            "leave --part out."
        )
    if chosen == "model" and target != OWN:
        _require_same_heads(target, model)
    blocks = spec.parts[chosen].blocks
    filled = [_fill(target, block, trained) for block in blocks]
    wrong = [problem for found in filled for problem in found.wrong]
    if wrong:
        wanted = sum(len(block.shapes) for block in blocks)
        raise UserError(
            f"nothing was exported: {len(wrong)} of the {wanted} tensors that {target} shares with this "
            f"model cannot be given ({'; '.join(wrong[:3])}). Check that the checkpoint and the run's "
            "`backbone.name` belong together."
        )
    tensors = {name: value for found in filled for name, value in found.tensors.items()}
    mapped = {name: source for found in filled for name, source in found.mapped.items()}
    used = {source for found in filled for source in found.used}
    return Exported(
        target,
        chosen,
        spec,
        tensors,
        tuple(
            Row(block.name, block.source, block.how, len(found.tensors), len(block.shapes))
            for block, found in zip(blocks, filled, strict=True)
        ),
        mapped,
        added=tuple(sorted(tensors.keys() - mapped.keys())),
        dropped=tuple(sorted(trained.keys() - used)),
        missing=spec.parts[chosen].left,
    )


def _require_same_heads(target: str, model: PersonSearchConfig) -> None:
    """What shapes alone do not tell."""
    detector, heads = model.detector, model.heads
    differs = []
    if (detector.anchor_sizes, detector.anchor_ratios) != (ANCHOR_SIZES, ANCHOR_RATIOS):
        differs.append(f"anchors other than {ANCHOR_SIZES} x {ANCHOR_RATIOS}")
    if target != "coat" and detector.roi_size != ROI_SIZE:
        differs.append(f"RoIs of {detector.roi_size} cells where it has {ROI_SIZE}")
    if target != "coat" and heads.classifier != "norm_aware":
        differs.append("`heads.classifier: linear` where the norm of the embedding should classify")
    if target != "coat" and not heads.box_norm:
        differs.append("no norm behind its box regressor (`heads.box_norm`)")
    if differs:
        raise UserError(
            f"this run's model is not the whole model of the {target} target: it has "
            f"{', and '.join(differs)}. Export the backbone with --part backbone, or train with the "
            "target's settings."
        )


@dataclass(frozen=True)
class _Filled:
    tensors: dict[str, Tensor]
    mapped: dict[str, str]
    used: set[str]
    wrong: list[str]


def _fill(target: str, block: Block, trained: Mapping[str, Tensor]) -> _Filled:
    given = {
        name.removeprefix(block.source): value
        for name, value in trained.items()
        if name.startswith(block.source)
    }
    made = {name: _make(block, name, given) for name in block.shapes}
    tensors: dict[str, Tensor] = {}
    mapped: dict[str, str] = {}
    used: set[str] = set()
    wrong: list[str] = []
    for name, (value, sources) in made.items():
        full, wants = block.name + name, block.shapes[name]
        absent = [source for source in sources if source not in given]
        if name.endswith(COUNTER) and absent:
            tensors[full] = torch.zeros((), dtype=torch.int64)
        elif value is None:
            wrong.append(f"{block.source}{absent[0]} is absent")
        elif tuple(value.shape) != wants:
            has = tuple(value.shape)
            wrong.append(f"{block.source}{sources[0]} is {has} and {target} wants {wants}")
        elif not value.isfinite().all():
            wrong.append(f"{block.source}{sources[0]} holds values that are not finite")
        else:
            dtype = torch.float32 if value.is_floating_point() else value.dtype
            tensors[full] = value.to(dtype, copy=True).contiguous()
            mapped[full] = " + ".join(block.source + source for source in sources)
            used |= {block.source + source for source in sources}
    return _Filled(tensors, mapped, used, wrong)


def _make(
    block: Block, name: str, given: Mapping[str, Tensor]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """A tensor of the target, None if something for it is absent, and what it is made of."""
    if block.how == "norm folded, for both classes":
        sources: tuple[str, ...] = tuple(_folded_from(name))
    else:
        sources = (name,)
    if any(source not in given for source in sources):
        return None, sources
    parts = [given[source] for source in sources]
    if block.how == "input folded":
        return fold_input(parts[0]), sources
    if block.how == "norm folded, for both classes":
        return _for_both_classes(fold_norm(name, *parts)), sources
    if block.how == "for both classes":
        return _for_both_classes(parts[0]), sources
    return parts[0], sources


def fold_input(weight: Tensor) -> Tensor:
    """(C, 3, k, k) for RGB in [0, 1] normalised by ImageNet's mean and deviation -> for BGR in [0, 255] less
    255 times that mean. Exact, padding too: what is 0 stays 0."""
    if weight.shape[1] != len(IMAGENET_STD):
        return weight
    scale = 255 * torch.tensor(IMAGENET_STD, dtype=torch.float64)
    return (weight.double() / scale.view(1, -1, 1, 1)).flip(1).float()


def _folded_from(name: str) -> list[str]:
    norm = ["1.weight", "1.running_var"]
    if name == "weight":
        return ["0.weight", *norm]
    return ["0.bias", *norm, "1.bias", "1.running_mean"]


def fold_norm(name: str, value: Tensor, weight: Tensor, var: Tensor, *shift: Tensor) -> Tensor:
    """Weight or bias of the linear layer that a linear layer and a batch norm in evaluation mode make."""
    scale = weight.double() * torch.rsqrt(var.double() + NORM_EPS)
    if name == "weight":
        return (value.double() * scale[:, None]).float()
    bias, mean = shift
    return ((value.double() - mean.double()) * scale + bias.double()).float()


def _for_both_classes(value: Tensor) -> Tensor:
    """Background's half as person's: the target never reads nor trains it."""
    return torch.cat([value, value]) if value.ndim else value
