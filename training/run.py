"""A run: its folder, which says what was run, on what, and how far it got.

config.yaml  stream.json  identities.json  weights.json  environment.json  status.json  changes.jsonl
metrics.jsonl  tensorboard/  checkpoints/  ledger-RANK.jsonl  nonfinite/
"""

import fcntl
import json
import os
import socket
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.config import dump_config, load_config
from pipeline.errors import UserError
from pipeline.identities import Identities
from pipeline.stream import Stream
from training.changes import Changes, compare, is_free
from training.checkpoint import (
    MANIFEST,
    STATE,
    Checkpoint,
    CheckpointConfig,
    Checkpoints,
    State,
)
from training.distributed import rank, same_on_all_ranks
from training.environment import environment
from training.files import write_atomically
from training.hybrid import HybridModel
from training.model.person_search import PersonSearch, PersonSearchConfig
from training.model.weights import LoadedWeights
from training.provenance import (
    STREAM_FILE,
    WEIGHTS_FILE,
    DataSet,
    earlier_sets,
    first_weights,
    trained_run,
)
from training.run_config import RunConfig, StartConfig
from training.start import fill, require_same_form
from training.trained import TrainedWeights, read_exported, search_tensors

IDENTITIES_FILE, ENVIRONMENT_FILE = "identities.json", "environment.json"
LOCK_FILE = "writer.lock"


def require_same_start(going_on: Checkpoint | None, device: torch.device) -> None:
    """Raises UserError if ranks found different checkpoints to go on from. Collective."""
    if not same_on_all_ranks(going_on.state.step if going_on else -1, device):
        found = going_on.path if going_on else "no checkpoint"
        raise UserError(
            f"rank {rank()} found {found}, others found something else to go on from: the run folder "
            "must be one folder that all machines share."
        )


def require_same_weights(first: LoadedWeights | None, device: torch.device) -> None:
    """Raises UserError if ranks begin with different weights, which DeepSpeed would hide in part: it
    spreads rank 0's parameters, but no buffers, which frozen norms are made of. Collective.
    """
    if not same_on_all_ranks(int(first.sha256[:12], 16) if first else -1, device):
        raise UserError(
            f"rank {rank()} begins with {first.origin if first else 'random weights'}, others with other "
            "weights: a path leads to another file on another machine, or the run that they are of is "
            "still being trained. Name one file that all machines share, or one of its checkpoints."
        )


class RunFolder:
    """The folder of one run; raises UserError where it cannot be used."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def ledger(self, rank: int) -> Path:
        """Where a rank writes the samples that it could not use."""
        return self.path / f"ledger-{rank:05d}.jsonl"

    def checkpoints(self, config: CheckpointConfig) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", config)

    def require_unused(self) -> None:
        if self.path.exists() and any(p.name != LOCK_FILE for p in self.path.iterdir()):
            raise UserError(
                f"the run folder {self.path} is not empty. Continue that run with --resume, or choose "
                f"another folder with --set run=..."
            )

    def claim(self) -> IO[str]:
        """Keeps others from writing this run until this process ends or closes what it gets. Rank 0 only.

        Raises UserError if someone writes it: ranks outlive a launcher that was killed, for one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = open(self.path / LOCK_FILE, "a+")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"the run in {self.path} is still being written, by {lock.read().strip()}. Stop it with "
                "SIGTERM, which makes it write a checkpoint first, or wait for its end."
            ) from None
        except OSError:  # a file system without locks
            return lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        return lock

    def find_start(self, config: CheckpointConfig) -> Checkpoint | None:
        """The checkpoint to resume from; None, so from step 0, where none was written yet.

        Raises UserError if no checkpoint is whole.
        """
        return self.checkpoints(config).newest()

    def identities(self) -> Identities:
        """Those that have rows in the run's look-up table."""
        return Identities.from_json((self.path / IDENTITIES_FILE).read_bytes())

    def changes(self, config: RunConfig, stream: Stream, start: State) -> Changes:
        """What was otherwise when this folder was written last.

        Of the stream only its past counts, by its digest: what follows `start` may be chosen anew. Raises
        UserError if this is no run folder, or if its model does not fit what `stream` brings.
        """
        run = load_run(self.path)
        run.require_fit(config, stream)
        before = run.config
        trained, now = start.stream_digest, stream.history_digest(start.step)
        schedules = (before.optimiser.decay, config.optimiser.decay)
        changed = compare(before.model_dump(mode="json"), config.model_dump(mode="json"))
        free = {
            key: values
            for key, values in changed.items()
            if is_free(key, same_stream=trained == now, same_schedule=set(schedules) == {"none"})
        }
        binding = {key: values for key, values in changed.items() if key not in free}
        if trained != now:
            binding["digest of the stream so far"] = (trained[:12], now[:12])
        stored = json.loads((self.path / STREAM_FILE).read_text())["manifests"]
        moved = compare({"shard sets": stored}, {"shard sets": stream.manifests})
        machines = compare(json.loads((self.path / ENVIRONMENT_FILE).read_text()), environment())
        others = {key: v for key, v in machines.items() if not key.startswith("command")}
        return Changes(start.step, {**free, **moved, **others}, binding)

    def with_start(self, config: RunConfig, going_on: bool) -> RunConfig:
        """`config` that names the very checkpoint to begin with; a run that goes on began with what it has.

        Raises UserError if there is none, or if it does not fit.
        """
        start = config.start
        if going_on:
            start = load_run(self.path).config.start
        elif start is not None:
            weights = _open_start(start, config.hybrid.model)
            start = start.model_copy(update={"weights": str(weights.path)})
        return config.model_copy(update={"start": start})

    def create(self, config: RunConfig, stream: Stream, step: int = 0) -> None:
        """Writes what the run is; one that goes on from `step` writes it again, for its new machines.

        Rank 0 only.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        earlier: tuple[DataSet, ...] = ()
        if step:  # by the old config.yaml, which is replaced last for that
            before = load_run(self.path).config.stream
            earlier = earlier_sets(self.path, before, step, stream.manifests)
        self._write_json(
            STREAM_FILE,
            {
                "digest": stream.digest,
                "domains": stream.domains,
                "definition": stream.definition,
                "manifests": stream.manifests,
                "earlier": [asdict(one) for one in earlier],
            },
        )
        write_atomically(self.path / "config.yaml", dump_config(config))
        write_atomically(self.path / IDENTITIES_FILE, stream.identities.to_json().decode())
        self._write_json(ENVIRONMENT_FILE, environment())

    def record_weights(self, weights: LoadedWeights | None) -> None:
        """Those that the model begins with; None: random ones. Rank 0 only."""
        self._write_json(WEIGHTS_FILE, weights and asdict(weights))

    def write_status(
        self, step: int, steps: int, eta_s: float | None, stopping: bool, checkpoint: str | None
    ) -> None:
        """How far it got, for people and schedulers; `eta_s` is None before the first step."""
        self._write_json(
            "status.json",
            {
                "state": "finished" if step >= steps else "stopped" if stopping else "running",
                "step": step,
                "steps": steps,
                "eta_s": eta_s and round(eta_s, 1),
                "last_checkpoint": checkpoint,
            },
        )

    def _write_json(self, name: str, content: Any) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")


def build_model(
    config: RunConfig,
    identities: Identities,
    domains: dict[str, tuple[str, ...]],
    load_weights: bool = True,
) -> HybridModel:
    """The model before its first step: the same for the same seed, on every rank.

    Without `load_weights`, one that a checkpoint is to fill: no file of first weights need be there. Raises
    UserError if such weights cannot be had or do not fit.
    """
    torch.manual_seed(config.seed)
    own = load_weights and config.start is None
    model = HybridModel(config.hybrid, identities.num_rows, domains, config.seed, own)
    if load_weights and config.start is not None:
        model.search.first_weights = _begin(model.search, config.start)
    if config.start is not None:
        model.search.freeze_stem()
    return model


def _begin(search: PersonSearch, start: StartConfig) -> LoadedWeights:
    """Fills what `start` names. Raises UserError."""
    weights = _open_start(start, search.config)
    return fill(search, start.part, weights, weights.run() if rank() == 0 else None)


def _open_start(start: StartConfig, model: PersonSearchConfig) -> TrainedWeights:
    weights = open_trained(start.weights)
    require_same_form(weights.model, model, start.part, start.weights)
    return weights


@dataclass(frozen=True)
class Run:
    """A run read back from its folder, without its shards."""

    folder: RunFolder
    config: RunConfig
    identities: Identities
    domains: dict[str, tuple[str, ...]]

    def require_fit(self, config: RunConfig, stream: Stream) -> None:
        """Raises UserError if `stream` has other identities or domains than the tables and classifiers."""
        added = Counter(name for name, _ in stream.identities.pairs[self.identities.num_rows :])
        wanted = [f"{number} identities of {name}" for name, number in added.items()]
        for task in sorted({"detection", "reid"}.intersection(config.hybrid.alignment.tasks)):
            old, new = self.domains.get(task, ()), stream.domains[task]
            if max(1, len(old)) != max(1, len(new)):  # a single domain has no classifier
                before, now = (", ".join(names) or "none" for names in (old, new))
                wanted.append(f"{now} as the domains of {task} in place of {before}")
        if wanted:
            raise UserError(
                f"the model of the run in {self.folder.path} does not fit {'; '.join(wanted)}: its "
                "look-up table and domain classifiers keep their size. Sets that come later are named in "
                "`stream.segments` before a run starts, and one that ends is left out of a later segment. "
                "A new run may begin with this one's weights: "
                f"--set run=... --set start.weights={self.folder.path}."
            )

    def checkpoint(self) -> Checkpoint:
        newest = self.folder.checkpoints(self.config.checkpoint).newest()
        if newest is None:
            raise UserError(f"{self.folder.path} has no checkpoint yet: train the run further.")
        return newest

    def weights(self, checkpoint: Checkpoint) -> TrainedWeights:
        """What `checkpoint`, one of this run's, holds of the model that searches."""
        short, long = sorted(self.config.stream.scene_size)
        return TrainedWeights(
            checkpoint.path,
            checkpoint.sha256,
            self.config.hybrid.model,
            (short, long),
            self.folder.path.resolve().name,
            checkpoint.state.step,
            tensors=lambda: search_tensors(checkpoint.model()),
            run=lambda: trained_run(self.folder.path, self.config.stream),
        )

    def model(self, checkpoint: Checkpoint | None = None) -> HybridModel:
        """The model with the weights of `checkpoint`; of the newest, if None is given."""
        model = build_model(self.config, self.identities, self.domains, load_weights=False)
        (checkpoint or self.checkpoint()).load_into(model)
        return model.eval()

    def first_model(self) -> HybridModel:
        """The model as it was before the first step."""
        model = build_model(self.config, self.identities, self.domains, load_weights=True)
        self._require_first(model.search.first_weights)
        return model.eval()

    def _require_first(self, found: LoadedWeights | None) -> None:
        """Raises UserError if what the run began with is no longer where it was."""
        recorded = first_weights(self.folder.path)
        if found and recorded and found.sha256 != recorded["sha256"]:
            raise UserError(
                f"{found.origin} is not what {self.folder.path} began with (sha256 {found.sha256[:12]}, not "
                f"{recorded['sha256'][:12]}): put those weights back."
            )


def load_run(path: str | Path) -> Run:
    """Raises UserError if `path` is no run folder."""
    folder = RunFolder(path)
    if folder.path.is_file():
        raise UserError(f"{path} is a file: expected the folder of a run, with config.yaml in it.")
    for name in ("config.yaml", STREAM_FILE, IDENTITIES_FILE, ENVIRONMENT_FILE):
        if not (folder.path / name).exists():
            raise UserError(f"{path} is not a run folder: {name} is missing in it.")
    stream = json.loads((folder.path / STREAM_FILE).read_text())
    identities = Identities.from_json((folder.path / IDENTITIES_FILE).read_bytes())
    return Run(
        folder,
        load_config(RunConfig, folder.path / "config.yaml"),
        identities,
        {task: tuple(names) for task, names in stream["domains"].items()},
    )


def open_run(path: str | Path) -> tuple[Run, Checkpoint]:
    """`path`: a run folder, for its newest checkpoint, or a checkpoint folder in one. Raises UserError."""
    named = Path(path)
    if (named / STATE).is_file() and (named / MANIFEST).is_file():
        return load_run(named.resolve().parent.parent), Checkpoint.open(named)
    if (named / "config.yaml").is_file():
        run = load_run(named)
        return run, run.checkpoint()
    kept = sorted(other.name for other in named.parent.glob("step-*"))
    raise UserError(
        f"no trained weights in {path}: expected a run folder, or a folder checkpoints/step-* in one"
        + (f"; beside it are {', '.join(kept)}." if kept else ".")
    )


def open_trained(path: str | Path) -> TrainedWeights:
    """`path`: what `open_run` takes, or a file that `launch/export.py RUN --target person_search` wrote.

    Raises UserError.
    """
    if Path(path).is_file():
        return read_exported(Path(path))
    run, checkpoint = open_run(path)
    return run.weights(checkpoint)
