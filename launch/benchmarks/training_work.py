"""What is trained in the benchmark of training: the paper's model and batches of its shapes, without data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from pipeline.batch import Batch, Images, Use, View
from training.hybrid import HybridConfig, HybridModel

DOMAINS = {"detection": ("crowdhuman", "ecp"), "reid": ("msmt17", "cuhk03", "luperson")}
IDENTITIES = 1041 + 767
"""Of MSMT17 and CUHK03."""


@dataclass(frozen=True)
class Scale:
    scenes: int
    """Images of a step, each in two views."""
    canvases: int
    scene_size: tuple[int, int]
    canvas_size: tuple[int, int]
    """Height and width, multiples of 32: what torchvision's transform pads to."""
    rois: int
    """Sampled a view; anchors are 256."""
    roi_size: tuple[int, int] = (14, 14)
    backbone: Literal["resnet18", "resnet50"] = "resnet50"
    persons: int = 8
    """In a scene."""
    proposals: tuple[int, int] = (12000, 2000)
    """A view, before and after NMS."""
    queue: int = 5000
    steps: int = 1
    """A turn."""
    rounds: int = 4
    matrix: int = 1024
    """Side of the matrices whose product is the ceiling."""
    data_steps: int = 10
    """With the stream, after as many to warm up."""
    scenes_stored: int = 64
    canvases_stored: int = 128

    @property
    def images(self) -> int:
        return self.scenes + self.canvases


PAPER = Scale(
    scenes=4,
    canvases=8,
    scene_size=(640, 1088),
    canvas_size=(384, 192),
    rois=128,
    steps=3,
    rounds=5,
    matrix=8192,
    data_steps=20,
)
"""The share of one of eight GPUs in the batch of launch/configs/pretrain/paper_resnet50.yaml."""
SMALL = Scale(
    scenes=1,
    canvases=2,
    scene_size=(192, 320),
    canvas_size=(128, 64),
    rois=8,
    data_steps=4,
    scenes_stored=32,
    canvases_stored=64,
)
"""For CPUs."""
TOY = Scale(
    scenes=1,
    canvases=2,
    scene_size=(64, 96),
    canvas_size=(64, 32),
    rois=4,
    roi_size=(4, 4),
    backbone="resnet18",
    persons=2,
    proposals=(64, 16),
    queue=16,
    rounds=1,
    matrix=64,
    data_steps=1,
    scenes_stored=4,
    canvases_stored=8,
)
"""To try the command itself."""


def made_model(folder: Path, scale: Scale, proposal_source: str = "rpn") -> HybridModel:
    """The paper's settings. Weights are random: they cost the same as trained ones."""
    weights = folder / f"{scale.backbone}.pth"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save(_calibrated(scale.backbone).state_dict(), weights)
    before, after = scale.proposals
    quota = {"anchors": 256, "rois": scale.rois}
    config = HybridConfig.model_validate(
        {
            "model": {
                "backbone": {"name": scale.backbone, "weights": str(weights), "norm": "frozen"},
                "detector": {
                    "proposals_before_nms": before,
                    "proposals": after,
                    "proposal_source": proposal_source,
                    "roi_size": scale.roi_size,
                    "scenes": quota,
                    "canvases": quota,
                },
            },
            "oim": {"queue": scale.queue},
            "alignment": {"ramp": [0, 0]},
        }
    )
    torch.manual_seed(0)
    model = HybridModel(config, IDENTITIES, DOMAINS, seed=0)
    tables = model.tables
    for name in ("lut", "queue"):  # full, as after the first epochs
        table = getattr(tables, name)
        table.copy_(nn.functional.normalize(torch.randn_like(table), dim=1))
        getattr(tables, f"{name}_filled").fill_(True)
    return model


def _calibrated(backbone: str) -> nn.Module:
    """Running statistics as of noise, so that frozen norms keep activations in bounds."""
    net = getattr(torchvision.models, backbone)(weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 128, 128))
    return net.eval()


def made_batch(scale: Scale, number: int) -> Batch:
    """Noise with persons, all of them in both views, on the host."""
    generator = torch.Generator().manual_seed(number)
    scenes = _images(scale.scenes, scale.persons, scale.scene_size, number, generator)
    canvases = _images(scale.canvases, 1, scale.canvas_size, number, generator)
    half = canvases.identity[::2]  # the others are LUPerson's
    half.copy_(torch.randint(IDENTITIES, half.shape, generator=generator))
    return Batch(number, scenes, canvases)


def _images(
    count: int, persons: int, size: tuple[int, int], number: int, generator: torch.Generator
) -> Images:
    total = count * persons
    position = torch.arange(count) + number * count
    return Images(
        views=(_view(count, total, size, generator), _view(count, total, size, generator)),
        position=position,
        domain=torch.arange(count) % 2,
        image=torch.arange(count).repeat_interleave(persons),
        person=torch.arange(persons).repeat(count),
        identity=torch.full((total,), -1),
        keys=tuple(f"made/train/{p}" for p in position.tolist()),
    )


def _view(count: int, persons: int, size: tuple[int, int], generator: torch.Generator) -> View:
    pixels = torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)

    def between(low: float, high: Tensor | float) -> Tensor:
        return low + torch.rand(persons, generator=generator) * (high - low)

    height = between(0.3, 0.8) * size[0]
    width = (height * 0.4).clamp(max=size[1] - 1)
    x, y = between(0, size[1] - width), between(0, size[0] - height)
    boxes = torch.stack([x, y, x + width, y + height], 1)
    valid = torch.tensor([size]).repeat(count, 1)
    return View(pixels, valid, boxes, torch.full((persons,), int(Use.MATCH)))
