"""The settings of a run: what `launch/pretrain.py` and `launch/finetune.py` read from their file."""

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.settings import StreamConfig
from training.checkpoint import CheckpointConfig
from training.engine_config import EngineConfig
from training.hybrid import HybridConfig
from training.metrics import LogConfig
from training.schedule import OptimiserConfig
from training.start import Part


class StartConfig(Config):
    """Weights of another run that this one begins with, in place of the backbone's own."""

    weights: str
    """Folder of a run, for its newest checkpoint, RUN/checkpoints/step-* for one of it, or a file that
    `launch/export.py RUN --target person_search` wrote."""
    part: Part = "model"
    """`backbone`: trunk and last stage; `model`: the RPN and all heads of boxes too. Tables, predictor and
    domain classifiers are always new."""


class RunConfig(Config):
    """A whole run: pre-training, or fine-tuning if it has a person-search set and no pre-training losses."""

    run: str
    """Folder that the run is written into."""
    seed: int = 0
    """Of the initial weights and of every draw inside a step."""
    steps: int = Field(gt=0)
    """Optimizer steps."""
    start: StartConfig | None = None
    stream: StreamConfig
    hybrid: HybridConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.hybrid.oim.mean == "roi" and self.engine.accumulation > 1:
            raise ValueError(
                "`hybrid.oim.mean: roi` needs `engine.accumulation: 1`: RoIs are counted in the forward, and "
                "that of a later micro-step comes too late for the backward of this one"
            )
        if self.stream.views.number == 1 and self.hybrid.weights.similarity:
            raise ValueError(
                "`stream.views.number: 1` leaves L_con no second view to agree with: set "
                "`hybrid.weights.similarity: 0`, or show two views"
            )
        if self.start is None:
            self.hybrid.model.backbone.require_trained()
        return self

    @property
    def of_pre_training(self) -> list[str]:
        """Names of the settings that are on and that only pre-training has: none in fine-tuning."""
        settings = {
            "stream.canvas_batch": self.stream.canvas_batch,
            "hybrid.weights.similarity": self.hybrid.weights.similarity,
            "hybrid.alignment.tasks": self.hybrid.alignment.tasks,
        }
        return [name for name, value in settings.items() if value]
