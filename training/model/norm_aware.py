"""NAE's heads: a 256-d embedding from two feature maps, person or not from its norm, and the box.

Source: Chen et al., Norm-Aware Embedding for Efficient Person Search, CVPR 2020.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config
from training.model.norm import CrossRankNorm, NormContext

SMALL_STD = 0.01


class HeadsConfig(Config):
    embedding: int = Field(default=256, gt=0, multiple_of=2)
    """Dimensions, half from each of the trunk's and the last stage's features."""
    classifier: Literal["norm_aware", "linear"] = "norm_aware"
    """`norm_aware`: the embedding's norm decides person or not, as NAE. From random weights that trained
    one task only; `linear` is SeqNet's separate classifier."""
    box_norm: bool = True
    """A norm behind the box regressor, as NAE has."""


class EmbeddingHead(nn.Module):
    """(R, C4) and (R, C5) pooled features -> (R, embedding), before L2 normalisation."""

    def __init__(
        self, channels: tuple[int, int], config: HeadsConfig, context: NormContext
    ) -> None:
        super().__init__()
        half = config.embedding // 2
        # a norm-aware classifier needs norms that start small: NAE's own choice
        small = config.classifier == "norm_aware"
        self.projectors = nn.ModuleDict(
            {
                name: _projector(width, half, context, small)
                for name, width in zip(("feat_res4", "feat_res5"), channels)
            }
        )

    def forward(self, res4: Tensor, res5: Tensor) -> Tensor:
        parts = [self.projectors["feat_res4"](res4), self.projectors["feat_res5"](res5)]
        return torch.cat(parts, dim=1)


class NormAwareClassifier(nn.Module):
    """Logit = rescaled norm of the embedding."""

    def __init__(self, context: NormContext) -> None:
        super().__init__()
        self.rescaler = CrossRankNorm(1, context)

    def forward(self, embedding: Tensor, res5: Tensor) -> Tensor:
        # the norm of an all-zero row has no gradient: keep it off zero
        norm = embedding.square().sum(1, keepdim=True).clamp(min=1e-24).sqrt()
        return self.rescaler(norm).squeeze(1)


class LinearClassifier(nn.Module):
    """Logit = a linear function of the last stage's features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Linear(channels, 1)
        nn.init.normal_(self.score.weight, std=SMALL_STD)
        nn.init.zeros_(self.score.bias)

    def forward(self, embedding: Tensor, res5: Tensor) -> Tensor:
        return self.score(res5).squeeze(1)


class BoxRegressor(nn.Sequential):
    """(R, C5) -> (R, 4) offsets of the one class."""

    def __init__(self, channels: int, config: HeadsConfig, context: NormContext) -> None:
        linear = nn.Linear(channels, 4)
        nn.init.normal_(linear.weight, std=SMALL_STD)
        nn.init.zeros_(linear.bias)
        layers: list[nn.Module] = [linear]
        if config.box_norm:
            norm = CrossRankNorm(4, context)
            nn.init.normal_(norm.weight, std=SMALL_STD)
            layers.append(norm)
        super().__init__(*layers)


def unit(embedding: Tensor) -> Tensor:
    """Rows scaled to length 1, in fp32 or wider."""
    wide = embedding if embedding.dtype == torch.float64 else embedding.float()
    return F.normalize(wide, dim=1, eps=1e-12)


def _projector(inputs: int, outputs: int, context: NormContext, small: bool) -> nn.Sequential:
    linear, norm = nn.Linear(inputs, outputs), CrossRankNorm(outputs, context)
    nn.init.normal_(linear.weight, std=SMALL_STD)
    nn.init.zeros_(linear.bias)
    if small:
        nn.init.normal_(norm.weight, std=SMALL_STD)
    return nn.Sequential(linear, norm)
