"""Moments of a sharding run in which something is killed, drawn by seed."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

HOOK = Path(__file__).parent / "hook"
SCRATCH = r"\.[0-9a-f]{32}\.tmp$"


@dataclass(frozen=True)
class Kind:
    """What is counted: an audit event of Python whose argument of that number is a path that fits."""

    event: str
    pattern: str
    argument: int = 0
    most: int = 1
    """How often it happens at least in the run that the tests make."""


def _replaced(name: str, most: int = 1) -> dict[str, Kind]:
    """Both halves of replacing a file: its scratch file is opened and written, then renamed."""
    plain = name.replace(r"\d{6}", "N").replace("\\", "")
    return {
        f"write of {plain}": Kind("open", rf"/\.{name}{SCRATCH}", most=most),
        f"rename of {plain}": Kind("os.rename", rf"/{name}$", argument=1, most=most),
    }


TARS = 18
"""Nine shards in two variants."""
KINDS = {
    "read of a sample": Kind("open", r"\.jpg$", most=25),
    **_replaced(r"\d{6}\.tar", TARS),
    **_replaced(r"\d{6}\.parquet", TARS),
    **_replaced(r"quarantine\.parquet"),
    **_replaced(r"manifest\.json"),
}
IN_DRIVER = ("quarantine", "manifest")
VICTIMS = ("process", "driver", "raylet", "everything")
"""The process where it happens; the others by name; the driver, Ray and all workers at once."""
DELAYS_S = (0.0, 0.0005, 0.002, 0.008)
"""0: right before it happens; otherwise most likely while the file is being written, or just after."""


@dataclass(frozen=True)
class Moment:
    name: str
    kind: Kind
    nth: int
    victim: str
    delay_s: float

    @property
    def ends_the_run(self) -> bool:
        """Whether the driver dies."""
        return self.victim in ("driver", "everything") or any(w in self.name for w in IN_DRIVER)

    def environment(self, folder: Path) -> dict[str, str]:
        """For the driver; `folder` is to hold where it fell. Its processes pass it on to Ray's."""
        moment = {
            "event": self.kind.event,
            "pattern": self.kind.pattern,
            "argument": self.kind.argument,
            "nth": self.nth,
            "victim": self.victim,
            "delay_s": self.delay_s,
            "counter": str(folder / "counter"),
            "fell": str(fell(folder)),
        }
        return {"CRASH_MOMENT": json.dumps(moment), **_with_hook()}


def slowed(seconds: float) -> dict[str, str]:
    """An environment in which each picture of the source takes `seconds` to open."""
    return {"CRASH_PAUSE_S": str(seconds), **_with_hook()}


def _with_hook() -> dict[str, str]:
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def fell(folder: Path) -> Path:
    """The file that tells what was killed, and at what; absent: nothing was."""
    return folder / "fell"


def draw(seed: int) -> Moment:
    """Kinds come in turn, so that a few seeds in a row reach all of them; the rest is drawn."""
    rng = random.Random(seed)
    name = list(KINDS)[seed % len(KINDS)]
    kind = KINDS[name]
    victim = rng.choice(VICTIMS[:2] if any(word in name for word in IN_DRIVER) else VICTIMS)
    return Moment(name, kind, rng.randint(1, kind.most), victim, rng.choice(DELAYS_S))
