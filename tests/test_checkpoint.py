"""Checkpoints: whole and hash-correct, or not there."""

import errno
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.errors import UserError
from training import checkpoint
from training.checkpoint import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    CheckpointConfig,
    Checkpoints,
    State,
)


def state(step: int) -> State:
    return State(
        step=step, images=8 * step, stream_digest="ab", tables_digest="cd", sample_digest="ef"
    )


def tensors(value: float) -> dict[str, Tensor]:
    flat = torch.full((6,), value)
    return {
        "weight": flat[:4].view(2, 2),  # views of one buffer, as ZeRO keeps its parameters
        "bias": flat[4:],
        "count": torch.tensor(7),
        "filled": torch.tensor([True, False]),
    }


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", CheckpointConfig(every=5, keep=2))


def write(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.write(state(step), tensors(step), {"weight/exp_avg": torch.ones(2, 2) * step})


def test_round_trip(checkpoints: Checkpoints) -> None:
    write(checkpoints, 5)
    found = checkpoints.newest()
    assert found is not None
    assert found.state == state(5)
    for name, tensor in tensors(5).items():
        assert torch.equal(found.model()[name], tensor)
        assert found.model()[name].dtype == tensor.dtype
    assert torch.equal(found.optimizer()["weight/exp_avg"], torch.ones(2, 2) * 5)


def test_none_written_yet(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    assert checkpoints.latest() is None


def test_the_last_ones_are_kept(checkpoints: Checkpoints) -> None:
    write(checkpoints, 5, 10, 15)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["latest", "step-00000010", "step-00000015"]
    assert checkpoints.latest() == "step-00000015"


def test_due() -> None:
    due = Checkpoints(Path("unused"), CheckpointConfig(every=5, keep=1)).due
    assert [step for step in range(1, 12) if due(step)] == [5, 10]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def garble(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[(name, damage) for name in (MODEL, OPTIMIZER, STATE) for damage in (truncate, flip)],
        *[(name, Path.unlink) for name in (MODEL, OPTIMIZER, STATE, MANIFEST)],
        (MANIFEST, garble),
    ],
)
def test_a_damaged_one_is_passed_over(
    checkpoints: Checkpoints, name: str, damage: Callable[[Path], None]
) -> None:
    write(checkpoints, 5, 10)
    damage(checkpoints.folder / "step-00000010" / name)
    found = checkpoints.newest()
    assert found is not None
    assert found.state.step == 5


def test_if_all_are_damaged_the_user_decides(checkpoints: Checkpoints) -> None:
    write(checkpoints, 5)
    flip(checkpoints.folder / "step-00000005" / MODEL)
    with pytest.raises(UserError, match=r"step-00000005 \(model.safetensors has another hash"):
        checkpoints.newest()


def test_whoever_may_read_one_file_may_read_all(checkpoints: Checkpoints) -> None:
    write(checkpoints, 5)
    files = (checkpoints.folder / "step-00000005").iterdir()
    assert len({path.stat().st_mode for path in files}) == 1


def test_a_killed_writer_leaves_nothing_that_counts(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoints, 5)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "sync", killed)
        with pytest.raises(KeyboardInterrupt):
            write(checkpoints, 10)
    found = checkpoints.newest()
    assert found is not None
    assert found.state.step == 5
    write(checkpoints, 10)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["latest", "step-00000005", "step-00000010"]


def write_to_the_end(checkpoints: Checkpoints, step: int) -> None:
    write(checkpoints, step)
    checkpoints.wait()


class DiskFull:
    """As a full disk does it to safetensors, which says so in its own way, and to Python."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *arguments: object) -> None:
        raise self.error


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("save_file", SafetensorError("No space left on device")),
        ("sync", OSError(28, "No space left on device")),
    ],
)
def test_a_full_disk_costs_no_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: Exception,
    background: bool,
) -> None:
    config = CheckpointConfig(every=5, keep=1, background=background)
    checkpoints = Checkpoints(tmp_path / "checkpoints", config)
    write_to_the_end(checkpoints, 5)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, where, DiskFull(error))
        with pytest.raises(
            UserError, match=r"cannot write .*step-00000010: .*No space left.*Make room"
        ):
            write_to_the_end(checkpoints, 10)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["latest", "step-00000005"]
    assert checkpoints.latest() == "step-00000005"


def test_in_the_background_a_copy_is_written(tmp_path: Path) -> None:
    config = CheckpointConfig(background=True)
    checkpoints = Checkpoints(tmp_path / "checkpoints", config)
    weights = tensors(5)
    checkpoints.write(state(5), weights, {})
    weights["weight"].fill_(-1)  # the next step
    checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None
    assert torch.equal(found.model()["weight"], tensors(5)["weight"])


def test_recovery_ends_what_a_killed_writer_began(checkpoints: Checkpoints) -> None:
    write(checkpoints, 5, 10)
    (checkpoints.folder / ".writing-step-00000015").mkdir()
    (checkpoints.folder / "latest").write_text("step-00000005\n")
    found = checkpoints.newest()
    assert found is not None
    checkpoints.recover(found)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["latest", "step-00000005", "step-00000010"]
    assert checkpoints.latest() == "step-00000010"


def test_an_old_one_that_cannot_be_deleted_stops_nobody(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NFS keeps a file that someone has open, and its folder with it."""

    def keep(path: Path, ignore_errors: bool = False) -> None:
        raise OSError(39, "Directory not empty", str(path))

    write(checkpoints, 5, 10)
    (
        checkpoints.folder / ".writing-step-00000015"
    ).mkdir()  # of a killed writer, and of a step to come
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", keep)
        write(checkpoints, 15, 20, 20)  # the last step again, as a run that was resumed before it
        found = checkpoints.newest()
        assert found is not None and found.state == state(20)
        checkpoints.recover(found)
    said = capsys.readouterr().out
    for name in ("step-00000005", "step-00000010", "step-00000020"):
        assert said.count(f"deleted-{name}") == 1
    checkpoints.recover(found)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["latest", "step-00000015", "step-00000020"]


def test_a_step_can_be_written_again(checkpoints: Checkpoints) -> None:
    write(checkpoints, 5, 10)
    flip(checkpoints.folder / "step-00000010" / MODEL)
    write(checkpoints, 10)
    found = checkpoints.newest()
    assert found is not None
    assert found.state.step == 10


@pytest.mark.parametrize("hashed", [1, 2, 3])
def test_who_reads_what_a_run_deletes_takes_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: int
) -> None:
    folder, config = tmp_path / "checkpoints", CheckpointConfig(keep=1)
    write(Checkpoints(folder, config), 5)
    describe, calls = checkpoint._describe, count(1)

    def race(path: Path) -> dict[str, int | str]:
        found = describe(path)
        if next(calls) == hashed:
            write(Checkpoints(folder, config), 10)
        return found

    monkeypatch.setattr(checkpoint, "_describe", race)
    found = Checkpoints(folder, config).newest()
    assert found is not None and found.state.step == 10
    write(Checkpoints(folder, config), 15)
    for read in (found.model, found.optimizer):
        with pytest.raises(
            UserError, match=r"step-00000010 is not whole: .*safetensors is missing"
        ):
            read()


def test_nfs_says_that_a_file_is_gone_in_words_of_its_own(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoints, 5, 10)
    describe = checkpoint._describe

    def stale(path: Path) -> dict[str, int | str]:
        if path.parent.name == "step-00000010":
            raise OSError(errno.ESTALE, "Stale file handle")
        return describe(path)

    monkeypatch.setattr(checkpoint, "_describe", stale)
    found = checkpoints.newest()
    assert found is not None and found.state.step == 5


def test_another_model_is_a_user_error(checkpoints: Checkpoints) -> None:
    write(checkpoints, 5)
    found = checkpoints.newest()
    assert found is not None
    with pytest.raises(UserError, match="step-00000005 holds another model"):
        found.load_into(nn.Linear(2, 3))
