"""A trained person-search model, ready to search."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from training.model.person_search import PersonSearch
from training.run import open_trained
from training.trained import TrainedWeights

WEIGHTS_HELP = (
    "run folder, RUN/checkpoints/step-* for one of it, or a file that was exported as person_search"
)


@dataclass(frozen=True)
class Weights:
    model: PersonSearch
    """In evaluation mode, on the CPU."""
    trained: TrainedWeights
    """What it was filled with."""


def load_weights(path: str | Path) -> Weights:
    """`path`: what `open_trained` takes. Raises UserError."""
    trained = open_trained(path)
    model = PersonSearch(trained.model, seed=0, load_weights=False)
    try:
        model.load_state_dict(trained.tensors())
    except RuntimeError as error:
        raise UserError(
            f"{trained.path} holds another model than its configuration describes: "
            f"{' '.join(str(error).split())[:400]}"
        ) from None
    return Weights(model.eval(), trained)
