"""Checkpoints, complete and hash-correct or not there at all; one format for all world sizes and stages.

checkpoints/step-00001000/  model.safetensors  optimizer.safetensors  state.json  manifest.json
checkpoints/latest          the newest one's name, for people and scripts
"""

import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.errors import UserError
from training.files import sync, write_atomically

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)

HALF = ".writing-"
"""How the name begins of what is not whole yet, or not any more."""


class CheckpointConfig(Config):
    every: int = Field(default=1000, gt=0)
    """Optimizer steps between checkpoints; the last step is always kept."""
    keep: int = Field(default=3, gt=0)
    """How many of the newest to keep."""
    background: bool = False
    """Write while training goes on, from a copy in the host's memory; the next one waits for it."""


class State(BaseModel):
    """Where training stands: with weights and optimizer state, all that resuming needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    step: int
    """Optimizer steps done; also the stream's position, in global batches."""
    images: int
    """Images seen by all ranks, each in all its views."""
    stream_digest: str
    tables_digest: str
    """Digest of the look-up tables, equal on all ranks."""
    sample_digest: str
    """Digest of every (position, key) seen since step 0."""
    skipped: tuple[int, ...] = ()
    """Steps whose loss or gradient was not finite, counted from 0."""


class NotWhole(UserError):
    """A checkpoint that is damaged, half there, or gone: a run deletes its old ones while others read."""

    def __init__(self, path: Path, damage: str) -> None:
        super().__init__(
            f"the checkpoint {path} is not whole: {damage}. Choose another; a run deletes its old ones."
        )
        self.damage = damage


def _is_gone(error: OSError) -> bool:
    """NFS says ESTALE where a file is deleted while it is being read."""
    return isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE


@dataclass(frozen=True)
class Checkpoint:
    """A complete one. Its tensors come back on the CPU."""

    path: Path
    state: State
    sha256: str
    """Of the file with the model's tensors."""

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Raises NotWhole unless it is complete and hash-correct."""
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
            for name in (MODEL, OPTIMIZER, STATE):
                if (path / name).stat().st_size != files[name]["bytes"]:
                    raise NotWhole(path, f"{name} has another size than {MANIFEST} says")
                if _describe(path / name) != files[name]:
                    raise NotWhole(path, f"{name} has another hash than {MANIFEST} says")
            state = State.model_validate_json((path / STATE).read_text())
            return cls(path, state, files[MODEL]["sha256"])
        except OSError as error:
            if not _is_gone(error):
                raise
            name = Path(error.filename).name if error.filename else "one of its files"
            raise NotWhole(path, f"{name} is missing") from None
        except (ValidationError, ValueError, KeyError, TypeError):
            raise NotWhole(path, f"{MANIFEST} or {STATE} is not readable") from None

    def model(self) -> dict[str, Tensor]:
        """Parameters and buffers by name. Raises NotWhole if it was deleted since."""
        return self._load(MODEL)

    def optimizer(self) -> dict[str, Tensor]:
        """`parameter/state` -> tensor. Raises NotWhole if it was deleted since."""
        return self._load(OPTIMIZER)

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / name)
        except OSError as error:
            if not _is_gone(error):
                raise
            raise NotWhole(self.path, f"{name} is missing") from None

    def load_into(self, model: nn.Module) -> None:
        """Raises UserError if `model` has other tensors than the one that was saved."""
        try:
            model.load_state_dict(self.model())
        except RuntimeError as error:
            raise UserError(
                f"{self.path} holds another model than the configuration describes: "
                f"{' '.join(str(error).split())[:400]}"
            ) from None


def step_name(step: int) -> str:
    """Of the checkpoint's folder."""
    return f"step-{step:08d}"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._undeleted: set[Path] = set()

    def due(self, step: int) -> bool:
        """Whether `step` steps done call for a checkpoint."""
        return step % self.config.every == 0

    def write(
        self, state: State, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
    ) -> None:
        """Publishes a checkpoint by one rename, then deletes the oldest. One process at a time.

        In the background all but the copying; `wait` then raises what went wrong. Raises UserError if the
        files cannot be written: the checkpoints before it are still there.
        """
        self.wait()
        tensors = {MODEL: _packed(model), OPTIMIZER: _packed(optimizer)}
        self._pending = self._writer.submit(self._publish, state, tensors)
        if not self.config.background:
            self.wait()

    def wait(self) -> None:
        """Until the last `write` is done. Raises UserError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _publish(self, state: State, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        began = time.perf_counter()
        name = step_name(state.step)
        # A name of its own: a half folder of an earlier try may not go away.
        temporary = self.folder / f"{HALF}{name}.{time.time_ns()}"
        try:
            self._clear()
            size = _fill(temporary, state, tensors)
            self._put_in_place(temporary, self.folder / name)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)  # its space may be what is missing
            raise UserError(
                f"cannot write the checkpoint {self.folder / name}: {error}. Those before it are untouched. "
                "Make room (`checkpoint.keep` says how many stay), then go on with --resume."
            ) from None
        for path in self._published()[self.config.keep :]:
            if path.name < name:
                self._delete(path)
        print(f"{name}: {size / 1e6:.1f} MB in {time.perf_counter() - began:.1f} s", flush=True)

    def _put_in_place(self, temporary: Path, target: Path) -> None:
        if target.exists():  # left by a run that was resumed from before it
            self._delete(target)
        temporary.rename(target)
        sync(self.folder)
        write_atomically(self.folder / "latest", target.name + "\n")

    def recover(self, newest: Checkpoint) -> None:
        """Does what a killed writer left undone: its half files go, and `latest` names the newest one."""
        self._clear()
        write_atomically(self.folder / "latest", newest.path.name + "\n")

    def latest(self) -> str | None:
        """Name of the one written last."""
        pointer = self.folder / "latest"
        return pointer.read_text().strip() if pointer.exists() else None

    def newest(self) -> Checkpoint | None:
        """The newest complete one; None if none was ever written.

        Raises UserError if there are some but none is whole: starting over would overwrite them.
        """
        broken: dict[Path, str] = {}
        # listed anew each time: the run that writes them may go on
        while path := next((p for p in self._published() if p not in broken), None):
            try:
                return Checkpoint.open(path)
            except NotWhole as problem:
                broken[path] = f"{path.name} ({problem.damage})"
        if broken:
            raise UserError(
                f"no checkpoint in {self.folder} is whole: {', '.join(broken.values())}. Restore one from a "
                "copy, or move the run's folder away to start over."
            )
        return None

    def _published(self) -> list[Path]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        names = [p for p in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}", p.name)]
        return sorted(names, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def _clear(self) -> None:
        """Of what killed writers left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(f"{HALF}*"):
            self._delete(stale)

    def _delete(self, path: Path) -> None:
        """What cannot be deleted yet is told once, stops nobody and is tried again at the next checkpoint.

        NFS keeps a folder as long as someone has one of its files open.
        """
        try:
            if not path.name.startswith(HALF):  # half deleted it must not look like a whole one
                path = path.rename(path.with_name(f"{HALF}deleted-{path.name}.{time.time_ns()}"))
            shutil.rmtree(path)
        except OSError as error:
            if path not in self._undeleted:
                said = f"cannot delete {path} yet: {error.strerror or error}"
                print(f"{said}. The next checkpoint tries again.", flush=True)
            self._undeleted.add(path)


def _fill(folder: Path, state: State, tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Writes a checkpoint's files to the disk, and returns their bytes."""
    folder.mkdir()
    for name, named in tensors.items():
        save_file(dict(named), folder / name)
    (folder / STATE).write_text(state.model_dump_json(indent=1) + "\n")
    for name in tensors:  # safetensors lets nobody else read them
        shutil.copymode(folder / STATE, folder / name)
    files = {name: _describe(folder / name) for name in (MODEL, OPTIMIZER, STATE)}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")
    for name in (*files, MANIFEST):
        sync(folder / name)
    sync(folder)
    return sum((folder / name).stat().st_size for name in (*files, MANIFEST))


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each with storage of its own: ZeRO keeps parameters as views of one buffer."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _describe(path: Path) -> dict[str, int | str]:
    with open(path, "rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
