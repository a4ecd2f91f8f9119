"""What a stream has done so far, in numbers that can be added over ranks."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.ledger import Ledger
from pipeline.rendering.renderer import TaskName
from pipeline.task import TaskStream

READS = ("bytes_read", "bytes_fetched", "cache_hits", "cache_misses")
"""Of `ReadStats`."""


@dataclass
class StreamStats:
    """This rank's; the consumer of batches alone writes it, as batches are handed over."""

    datasets: tuple[str, ...]
    """Names of the shard sets; equal on all ranks."""
    ledger: Ledger
    """Counts images handed over and samples that could not be used, by shard set."""
    wait_s: float = 0.0
    """Time that the consumer waited for batches."""
    reads: Counter[str] = field(default_factory=Counter)
    """By the names in READS, of all shard sets; what is read ahead counts at once."""
    positions: dict[TaskName, int] = field(default_factory=dict)
    """Where the step after the newest one begins, in the order of each task."""

    def counts(self) -> dict[str, float]:
        """All that can be added, under names that are equal on all ranks and in the same order."""
        return {
            "wait_s": self.wait_s,
            **{name: self.reads[name] for name in READS},
            **{f"images/{name}": self.ledger.decoded[name] for name in self.datasets},
            **{f"bad/{name}": self.ledger.bad[name] for name in self.datasets},
        }


def reads_of(tasks: Iterable[TaskStream]) -> Counter[str]:
    """What all shard sets of `tasks` have read in this process so far, by the names in READS."""
    total: Counter[str] = Counter()
    for stats in [reader.tars.stats for task in tasks for reader in task.readers]:
        total.update({name: getattr(stats, name) for name in READS})
    return total
