"""SimSiam's predictor: what L_con compares with the other view's embedding (paper section 3.2)."""

from torch import Tensor, nn

from training.model.norm import CrossRankNorm, NormContext

BOTTLENECK = 4


class Predictor(nn.Sequential):
    """(R, D) -> (R, D) through D / 4 hidden units, no norm at the output."""

    def __init__(self, width: int, context: NormContext) -> None:
        hidden = width // BOTTLENECK
        super().__init__(
            nn.Linear(width, hidden, bias=False),
            CrossRankNorm(hidden, context),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        return super().forward(embedding)
