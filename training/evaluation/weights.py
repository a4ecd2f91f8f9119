"""A trained person-search model out of a run folder, or out of one of its checkpoints."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from training.checkpoint import MANIFEST, MODEL, STATE, Checkpoint
from training.model.person_search import PersonSearch
from training.run import load_run

SEARCH = "search."
"""Where the trained model keeps the part that searches."""


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
    folder = Path(path)
    if (folder / STATE).is_file() and (folder / MANIFEST).is_file():
        run = load_run(folder.resolve().parent.parent)
        checkpoint = Checkpoint.open(folder)
    elif (folder / "config.yaml").is_file():
        run = load_run(folder)
        checkpoint = run.checkpoint()
    else:
        raise UserError(
            f"--weights {path}: expected a run folder, or a folder checkpoints/step-* in one. Exported files "
            "are named for other code and are not read back."
        )
    model = PersonSearch(run.config.hybrid.model, seed=0, load_weights=False)
    tensors = {
        name.removeprefix(SEARCH): tensor
        for name, tensor in checkpoint.model().items()
        if name.startswith(SEARCH)
    }
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint.path} holds another model than the run's configuration describes: "
            f"{' '.join(str(error).split())[:400]}"
        ) from None
    files = json.loads((checkpoint.path / MANIFEST).read_text())["files"]
    short, long = sorted(run.config.stream.scene_size)
    return Weights(
        model.eval(),
        files[MODEL]["sha256"],
        run.folder.path.resolve().name,
        checkpoint.state.step,
        (short, long),
    )
