"""What each target shares with the trained model, under which names: one table a target, all in this file.

Facts of the targets' published code: torchvision; NAE4PS, SeqNet and COAT (on torchvision's detector);
AlignPS and ROI-AlignPS (on mmdetection 2). Names and shapes alone are theirs. `person_search` is our own
model, for our own commands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
import torchvision

from pipeline.errors import UserError
from training.model.person_search import PersonSearch, PersonSearchConfig
from training.trained import SEARCH

Shapes = Mapping[str, tuple[int, ...]]
How = Literal["copied", "for both classes", "norm folded, for both classes", "input folded"]
PartName = Literal["backbone", "model"]

RGB = {
    "channels": "RGB",
    "range": [0, 1],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "stride": "in the 3x3 convolution",
}
CAFFE_BGR = {
    "channels": "BGR",
    "range": [0, 255],
    "mean": [103.530, 116.280, 123.675],
    "std": [1.0, 1.0, 1.0],
    "stride": "in the 3x3 convolution: set style='pytorch' in backbone and shared_head, which the "
    "published configurations set to 'caffe'",
}
ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = (14, 14)
ANCHORS = len(ANCHOR_SIZES) * len(ANCHOR_RATIOS)
CHANNELS = (1024, 2048)
"""Of a ResNet-50 behind layer3 and layer4."""
HALF = 128
"""Dimensions of the embedding from each of them."""


@dataclass(frozen=True)
class Block:
    """A module of the target that the trained model fills."""

    name: str
    """How its tensors' names begin in the target."""
    source: str
    """How they begin in the trained model."""
    shapes: Shapes
    """What follows in the target's names -> shape."""
    how: How = "copied"


@dataclass(frozen=True)
class Part:
    blocks: tuple[Block, ...]
    left: Mapping[str, str]
    """What the target initialises itself (tensors, or modules as `name.*`) -> why."""


@dataclass(frozen=True)
class Target:
    input: Mapping[str, Any]
    """How it must feed pixels."""
    parts: Mapping[PartName, Part]
    """The first one is what is exported if nothing is said."""
    wrapper: str | None = None
    """Key under which its loader expects the tensors in a `.pth`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else its loader reads from the `.pth`."""
    pth: Literal["old", "new"] | None = "old"
    """What `.pth` its loader takes: `old` if it may run on a PyTorch before 1.6, which reads no newer one."""

    @property
    def default_part(self) -> PartName:
        return next(iter(self.parts))


OWN = "person_search"
NAMES = ("torchvision", "nae", "seqnet", "coat", "alignps", "roi_alignps", OWN)


def find_target(name: str, model: PersonSearchConfig) -> Target:
    """Raises UserError if there is none of this name, or it does not take this model's backbone."""
    if name not in NAMES:
        raise UserError(f"no export target `{name}`; there are: {', '.join(NAMES)}.")
    return _own(model) if name == OWN else _of_other_code(name, model.backbone.name)


def _own(model: PersonSearchConfig) -> Target:
    state = PersonSearch(model, seed=0, load_weights=False).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    left = {
        "tables.*": "identities of the data set that it is trained on next",
        "predictor.*": "pre-training's; a run that has L_con makes its own",
        "alignment.*": "pre-training's; a run that aligns domains makes its own",
    }
    pixels = {name: value for name, value in RGB.items() if name != "stride"}  # any backbone
    return Target(pixels, {"model": Part((Block("", SEARCH, shapes),), left)}, pth=None)


@cache
def _of_other_code(name: str, backbone: str) -> Target:
    if not backbone.startswith("resnet"):
        raise UserError(f"the {name} target takes ResNets, and this run trained a {backbone}.")
    if name == "torchvision":
        return _torchvision(backbone)
    if backbone != "resnet50":
        raise UserError(
            f"the {name} target is a resnet50 in its published code, and this run trained a {backbone}. "
            "Its backbone can be had with --target torchvision."
        )
    builders = {
        "nae": _nae,
        "seqnet": _seqnet,
        "coat": _coat,
        "alignps": _alignps,
        "roi_alignps": _roi_alignps,
    }
    return builders[name]()


def _torchvision(backbone: str) -> Target:
    head = "the ImageNet classifier"
    blocks = (*_trunk("", backbone), _last_stage("", backbone))
    parts: dict[PartName, Part] = {"backbone": Part(blocks, {"fc.bias": head, "fc.weight": head})}
    return Target(RGB, parts, pth="new")


def _nae() -> Target:
    backbone = (*_trunk("backbone."), _last_stage("roi_heads.box_head."))
    left = {
        **_tables("roi_heads.reid_loss"),
        "roi_heads.box_predictor.cls_score.*": "unused by NAE: the norm of the embedding classifies",
    }
    heads = (*_rpn("rpn.head"), *_roi_heads())
    return Target(RGB, _parts(backbone, heads, left), "model", {"epoch": -1})


def _seqnet() -> Target:
    backbone = (
        *_trunk("backbone."),
        _last_stage("roi_heads.box_head."),
        _last_stage("roi_heads.reid_head."),
    )
    first_stage = Block(
        "roi_heads.faster_rcnn_predictor.bbox_pred.",
        "search.box_regressor.",
        _linear(CHANNELS[1], 8),
        "norm folded, for both classes",
    )
    left = {
        **_tables("roi_heads.reid_loss"),
        "roi_heads.faster_rcnn_predictor.cls_score.*": "a softmax over two classes, which NAE has not",
    }
    heads = (*_rpn("rpn.head"), *_roi_heads(), first_stage)
    return Target(RGB, _parts(backbone, heads, left), "model", {"epoch": -1})


def _coat() -> Target:
    left = {
        "roi_heads.*": "heads of transformers, which see other features than layer4's; it has no layer4"
    }
    parts = _parts(_trunk("backbone."), _rpn("rpn.head"), left)
    return Target(RGB, parts, "model", {"epoch": -1})


def _alignps() -> Target:
    left = {"neck.*": "a pyramid, which NAE has not", "bbox_head.*": "without anchors and RoIs"}
    backbone = Part(_flat_caffe(), left)
    return Target(CAFFE_BGR, {"backbone": backbone}, "state_dict", {"meta": {}})


def _roi_alignps() -> Target:
    """Whole model: for `load_from`. Backbone: for `pretrained`, which it loads into both its layer4."""
    left = {
        "neck.*": "a pyramid, which NAE has not",
        "bbox_head.*": "AlignPS's branch, without anchors and RoIs",
        "mi_estimator.*": "ties the two branches together in training",
        "roi_head.bbox_head.fc_cls.*": "unused: the norm of the embedding classifies",
        **_tables("roi_head.bbox_head.loss_oim"),
        **_tables("loss_oim"),
        "labeled_matching_layer.*": "identities, too",
        "unlabeled_matching_layer.*": "identities, too",
    }
    head = "roi_head.bbox_head."
    projectors = tuple(
        Block(f"{head}embedding_head.projectors.{number}.", block.source, block.shapes)
        for number, block in enumerate(_projectors(""))
    )
    model = (
        *_trunk("backbone.", input_folded=True),
        _last_stage("backbone."),
        _last_stage("roi_head.shared_head."),
        *_rpn_of("rpn_head.", ("rpn_conv.", "rpn_cls.", "rpn_reg.")),
        *projectors,
        Block(f"{head}embedding_head.rescaler.", "search.classifier.rescaler.", _norm(1)),
        Block(f"{head}fc_reg.", "search.box_regressor.", _normed_linear(CHANNELS[1], 4)),
    )
    only_heads = {
        "rpn_head.*": "not of the backbone",
        f"{head}*": "not of the backbone",
        "roi_head.shared_head.*": "filled by the target itself, from the same file",
    }
    rest = {name: why for name, why in left.items() if not name.startswith(head)}
    parts: dict[PartName, Part] = {
        "model": Part(model, left),
        "backbone": Part(_flat_caffe(), {**rest, **only_heads}),
    }
    return Target(CAFFE_BGR, parts, "state_dict", {"meta": {}})


def _parts(
    backbone: tuple[Block, ...], heads: tuple[Block, ...], left: Mapping[str, str]
) -> dict[PartName, Part]:
    others = {f"{block.name}*": "not of the backbone" for block in heads}
    return {
        "model": Part((*backbone, *heads), left),
        "backbone": Part(backbone, {**left, **others}),
    }


def _tables(loss: str) -> dict[str, str]:
    why = "identities of the data set that it is trained on next"
    return {f"{loss}.lut": why, f"{loss}.cq": why}


def _flat_caffe() -> tuple[Block, ...]:
    return (*_trunk("", input_folded=True), _last_stage(""))


def _roi_heads() -> tuple[Block, ...]:
    return (
        *_projectors("roi_heads.embedding_head.projectors."),
        Block("roi_heads.embedding_head.rescaler.", "search.classifier.rescaler.", _norm(1)),
        Block(
            "roi_heads.box_predictor.bbox_pred.",
            "search.box_regressor.",
            _normed_linear(CHANNELS[1], 8),
            "for both classes",
        ),
    )


def _projectors(prefix: str) -> tuple[Block, ...]:
    return tuple(
        Block(
            f"{prefix}{name}.",
            f"search.embedding_head.projectors.{name}.",
            _normed_linear(channels, HALF),
        )
        for name, channels in zip(("feat_res4", "feat_res5"), CHANNELS, strict=True)
    )


def _rpn(prefix: str) -> tuple[Block, ...]:
    """As torchvision named it before 0.13, which all three pin; newer ones rename it when they load."""
    return _rpn_of(f"{prefix}.", ("conv.", "cls_logits.", "bbox_pred."))


def _rpn_of(prefix: str, names: tuple[str, str, str]) -> tuple[Block, ...]:
    channels = CHANNELS[0]
    shapes = (
        {"weight": (channels, channels, 3, 3), "bias": (channels,)},
        {"weight": (ANCHORS, channels, 1, 1), "bias": (ANCHORS,)},
        {"weight": (4 * ANCHORS, channels, 1, 1), "bias": (4 * ANCHORS,)},
    )
    sources = ("conv.0.0.", "cls_logits.", "bbox_pred.")
    return tuple(
        Block(prefix + name, f"search.rpn.head.{source}", shape)
        for name, source, shape in zip(names, sources, shapes, strict=True)
    )


def _trunk(
    prefix: str, backbone: str = "resnet50", input_folded: bool = False
) -> tuple[Block, ...]:
    found = {
        name: shape
        for name, shape in _resnet(backbone).items()
        if not name.startswith(("fc.", "layer4."))
    }
    first = {"weight": found.pop("conv1.weight")}
    how: How = "input folded" if input_folded else "copied"
    return (
        Block(f"{prefix}conv1.", "search.backbone.conv1.", first, how),
        Block(prefix, "search.backbone.", found),
    )


def _last_stage(prefix: str, backbone: str = "resnet50") -> Block:
    begin = "layer4."
    found = _resnet(backbone)
    shapes = {name.removeprefix(begin): found[name] for name in found if name.startswith(begin)}
    return Block(f"{prefix}{begin}", "search.head.layer4.", shapes)


@cache
def _resnet(name: str) -> Shapes:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def _linear(inputs: int, outputs: int) -> Shapes:
    return {"weight": (outputs, inputs), "bias": (outputs,)}


def _norm(channels: int) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")
    return {**dict.fromkeys(names, (channels,)), "num_batches_tracked": ()}


def _normed_linear(inputs: int, outputs: int) -> Shapes:
    linear = {f"0.{name}": shape for name, shape in _linear(inputs, outputs).items()}
    return {**linear, **{f"1.{name}": shape for name, shape in _norm(outputs).items()}}
