"""What a resume that is refused leaves behind: a run that can be gone on with."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shardset import simple_set

from launch import pretrain
from pipeline.annotation import Task
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.stream import Stream
from training.checkpoint import Checkpoint, State
from training.run import RunFolder, build_model
from training.run_config import RunConfig

Resume = Callable[..., None]
ALIGNED = "hybrid.alignment.tasks=[detection]"


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """The folder of a run after its second step."""
    config = load_config(RunConfig, tiny_run, [f"run={tmp_path / 'run'}", ALIGNED])
    folder, stream = RunFolder(config.run), Stream.open(config.stream)
    folder.create(config, stream)
    model = build_model(config, stream.identities, stream.domains)
    state = State(
        step=2,
        images=12,
        stream_digest=stream.history_digest(2),
        tables_digest="",
        sample_digest="",
    )
    folder.checkpoints(config.checkpoint).write(state, model.state_dict(), {})
    return folder.path


@pytest.fixture
def resume(tiny_run: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Resume:
    """Goes on in this process up to the first step, without DeepSpeed."""

    def engine(model: torch.nn.Module, *_: object) -> SimpleNamespace:
        def restore(checkpoint: Checkpoint) -> None:
            checkpoint.load_into(model)

        return SimpleNamespace(restore=restore)

    def resume(*settings: str, allow_change: bool = False, meet: bool = True) -> None:
        def init(config: object) -> torch.device:
            assert meet, "the ranks met"
            return torch.device("cpu")

        monkeypatch.setattr(pretrain, "init_distributed", init)
        config = load_config(RunConfig, tiny_run, [f"run={run}", ALIGNED, *settings])
        pretrain.run(config, resume=True, allow_change=allow_change)

    monkeypatch.setattr(pretrain, "Engine", engine)
    monkeypatch.setattr(pretrain, "train", lambda *_: True)
    monkeypatch.setattr(pretrain, "close_distributed", lambda: None)
    return resume


def content(run: Path) -> dict[str, bytes]:
    paths = (path for path in run.rglob("*") if path.is_file() and path.name != "writer.lock")
    return {str(path): path.read_bytes() for path in paths}


def test_a_refused_change_leaves_the_folder_as_it_was(run: Path, resume: Resume) -> None:
    before = content(run)
    with pytest.raises(UserError, match=r"holds another model .*tables.queue"):
        resume("hybrid.oim.queue=16", allow_change=True)
    assert content(run) == before
    resume("log.every=2")
    assert content(run) != before


@pytest.mark.parametrize(
    ("key", "task", "options", "said"),
    [
        ("canvases", "reid", {}, "2 identities of new"),
        ("scenes", "detection", {}, "crowd, new as the domains of detection in place of crowd"),
        ("canvases", "reid", {"labelled": False}, None),
    ],
)
def test_a_set_that_the_model_has_no_room_for_is_named_before_ranks_meet(
    run: Path,
    resume: Resume,
    tmp_path: Path,
    key: str,
    task: Task,
    options: dict[str, Any],
    said: str | None,
) -> None:
    url = simple_set(tmp_path / "new", task, 2, 2, dataset="new", **options)
    segment = f"stream.segments=[{{from_step: 4, {key}: [{{shards: {url}, weight: 1}}]}}]"
    if said is None:
        resume(segment)
        return
    before = content(run)
    with pytest.raises(UserError, match=rf"does not fit {said}: .*start.weights={run}"):
        resume(segment, meet=False)
    assert content(run) == before
    resume()
