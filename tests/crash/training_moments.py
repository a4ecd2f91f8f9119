"""Moments of a training run in which ranks are killed, drawn by seed; and the run that is then resumed."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash.moments import DELAYS_S, Kind, fell
from ranks import STEPS, command, newest, ranks

SAVES = STEPS // 2
IN_A_STEP_S = (0.02, 0.05, 0.1)
"""After a step was logged, or before the first: somewhere in the next one."""
KINDS = {
    "step": Kind("os.rename", r"/status\.json$", argument=1, most=STEPS),
    "weights written": Kind(
        "open", r"/\.writing-step-[\d.]+/optimizer\.safetensors$", most=2 * SAVES
    ),
    "state written": Kind("open", r"/\.writing-step-[\d.]+/state\.json$", most=3 * SAVES),
    "published": Kind("os.rename", r"/checkpoints/step-\d+$", argument=1, most=SAVES),
    "latest replaced": Kind("os.rename", r"/checkpoints/latest$", argument=1, most=SAVES),
    "old one renamed": Kind("os.rename", r"/\.writing-deleted-", argument=1, most=SAVES - 1),
    "old one deleted": Kind("shutil.rmtree", r"/\.writing-deleted-", most=SAVES - 1),
    "start": Kind("os.rename", r"/config\.yaml$", argument=1),
}
VICTIMS = ("rank 0", "rank 1", "ranks")
"""Rank 0 writes the checkpoints; all at once is what a launcher's or a node's death comes to."""


@dataclass(frozen=True)
class TrainingMoment:
    name: str
    nth: int
    victim: str
    delay_s: float
    background: bool = False
    """Whether checkpoints are written in the background."""

    def for_hook(self, folder: Path) -> dict[str, Any]:
        """`folder` is to hold where it fell."""
        kind = KINDS[self.name]
        return {
            "event": kind.event,
            "pattern": kind.pattern,
            "argument": kind.argument,
            "nth": self.nth,
            "victim": self.victim,
            "delay_s": self.delay_s,
            "counter": str(folder / "counter"),
            "fell": str(fell(folder)),
        }


def draw(seed: int) -> TrainingMoment:
    """Kinds come in turn, so that a few seeds in a row reach all of them; the rest is drawn."""
    rng = random.Random(seed)
    name = list(KINDS)[seed % len(KINDS)]
    delay_s = rng.choice(IN_A_STEP_S if name == "step" else DELAYS_S)
    nth, victim = rng.randint(1, KINDS[name].most), rng.choice(VICTIMS)
    return TrainingMoment(name, nth, victim, delay_s, background=rng.random() < 0.5)


def interrupt(run_file: Path, run: Path, moment: TrainingMoment, folder: Path) -> str:
    """A run into which the moment falls; returns where. It must end by itself, all ranks of it."""
    setting = ("--set", f"checkpoint.background={str(moment.background).lower()}")
    folder.mkdir(parents=True)
    main = command(run_file, run, *setting)
    with ranks(2, main, folder / "ranks", moment.for_hook(folder)) as killed:
        codes = killed.wait()
        assert fell(folder).exists(), f"nothing was killed: {moment}\n{killed.output()}"
    assert -9 in codes, codes
    return fell(folder).read_text().strip()


def resume(run_file: Path, run: Path, folder: Path) -> dict[str, bytes]:
    """Goes on to the end, and returns the last checkpoint's files."""
    with ranks(2, command(run_file, run, "--resume"), folder) as resumed:
        codes = resumed.wait()
        assert codes == [0, 0], resumed.output()
    left = [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]
    assert not left, left
    return newest(run)
