"""A trained person-search model out of a run folder, or out of one of its checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from training.model.person_search import PersonSearch
from training.run import open_trained
from training.start import search_tensors


@dataclass(frozen=True)
class Weights:
    model: PersonSearch
    """In evaluation mode, on the CPU."""
    sha256: str
    """Of the file with the tensors."""
    run: str
    step: int
    size: tuple[int, int]
    """Short and long side of the scenes that it was trained on."""


def load_weights(path: str | Path) -> Weights:
    """`path`: a run folder, for its newest checkpoint, or a checkpoint folder in one. Raises UserError."""
    run, checkpoint = open_trained(path)
    model = PersonSearch(run.config.hybrid.model, seed=0, load_weights=False)
    try:
        model.load_state_dict(search_tensors(checkpoint.model()))
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint.path} holds another model than the run's configuration describes: "
            f"{' '.join(str(error).split())[:400]}"
        ) from None
    short, long = sorted(run.config.stream.scene_size)
    return Weights(
        model.eval(),
        checkpoint.sha256,
        run.folder.path.resolve().name,
        checkpoint.state.step,
        (short, long),
    )
