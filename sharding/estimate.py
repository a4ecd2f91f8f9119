"""How long a run will take and how much it will write, from a few samples that are really converted."""

import time
from dataclasses import dataclass

from sharding.convert import NeedsMemory, convert, read_sample
from sharding.image import Fault
from sharding.plan import PlannedSample
from sharding.prepare import PreparedSet

TRIED = 48
TRIED_S = 20.0
"""No more are tried after that: a slow store tells as much with fewer."""


@dataclass(frozen=True)
class Estimate:
    tried: int
    """Samples that it was made from; 0: none could be used and nothing is known."""
    written_bytes: int
    core_hours: float

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.tried + other.tried,
            self.written_bytes + other.written_bytes,
            self.core_hours + other.core_hours,
        )


def estimate(prepared: PreparedSet) -> Estimate:
    """Reads, checks and converts samples spread over the shards to do, one by one, and writes nothing.

    A worker reads several at a time from a store: of one that answers late, `core_hours` are too many.
    """
    conversion, tried, written = prepared.conversion(), 0, 0
    started = time.monotonic()
    for planned in _spread(prepared):
        if time.monotonic() - started > TRIED_S:
            break
        data = read_sample(conversion, planned)
        try:
            members, _ = convert(conversion, planned.source, data)
        except NeedsMemory:
            continue
        if not isinstance(members, Fault):
            tried += 1
            written += sum(len(member.image) + len(member.text) for member in members)
    share = prepared.samples_todo / max(tried, 1)
    hours = (time.monotonic() - started) * share / 3600
    return Estimate(tried, round(written * share), hours if tried else 0.0)


def _spread(prepared: PreparedSet) -> list[PlannedSample]:
    todo = prepared.todo
    chosen = todo[:: max(1, len(todo) // TRIED)][:TRIED]
    each = -(-TRIED // max(1, len(chosen)))
    return [planned for number in chosen for planned in prepared.plan.shards[number].samples[:each]]
