"""What a run that goes on does otherwise than before: found setting by setting, permitted, recorded."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

Values = tuple[Any, Any]
"""Before and now."""
FREE = (
    "run",
    "log.*",
    "checkpoint.*",
    "engine.zero_stage",
    "engine.accumulation",
    "engine.threads",
    "engine.timeout_s",
    "engine.speed.*",
    "engine.max_nonfinite",
    "stream.threads",
    "stream.workers",
    "stream.prefetch",
    "stream.cache*",
    "stream.check_tars",
    "stream.max_bad_*",
)
"""Settings that decide where, how fast and how talkatively, but not what is trained."""
FILE = "changes.jsonl"


@dataclass(frozen=True)
class Changes:
    """Between a run as its folder describes it and as it goes on from `step`, by dotted key."""

    step: int
    free: dict[str, Values]
    binding: dict[str, Values]
    """Those that change what is trained."""

    def require_permission(self, folder: Path) -> None:
        """Raises UserError that names the binding ones."""
        if self.binding:
            mixture = any("stream" in key for key in self.binding)
            raise UserError(
                f"the run in {folder} would go on from step {self.step} as another one: "
                f"{'; '.join(spell(self.binding))}. Take back what changed ({folder}/config.yaml and "
                "stream.json describe the run), start a new run with --set run=..., or give --allow-change: "
                f"the run then goes on with it, if its checkpoint fits, and notes it in {FILE}."
                + " As one of `stream.segments`, a mixture may change without it."
                * mixture
            )

    def record(self, folder: Path) -> None:
        """Appends them to the run's list and prints them, if there are any."""
        changed = {**self.binding, **self.free}
        if changed:
            with open(folder / FILE, "a") as file:
                file.write(json.dumps({"step": self.step, "changes": changed}) + "\n")
        for line in spell(changed):
            print(f"from step {self.step} on: {line}", flush=True)


def spell(changed: Mapping[str, Values]) -> Iterator[str]:
    return (f"{key} {json.dumps(old)} -> {json.dumps(new)}" for key, (old, new) in changed.items())


def compare(before: Any, now: Any) -> dict[str, Values]:
    """Of two trees, the leaves that differ, by dotted key; what one has not is None in it."""
    old, new = dict(leaves(before)), dict(leaves(now))
    keys = dict.fromkeys([*old, *new])
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """An empty list or mapping has none."""
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        yield prefix, tree
        return
    for key, value in items:
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def is_free(key: str, same_stream: bool, same_schedule: bool) -> bool:
    """`same_stream`: all that was streamed so far is the same; `same_schedule`: whatever `steps` is."""
    if key.startswith("stream.") and same_stream:
        return True
    return (key == "steps" and same_schedule) or any(fnmatch(key, free) for free in FREE)
