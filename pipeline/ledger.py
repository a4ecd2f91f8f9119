"""The ledger of samples that could not be used: counted, written down, and bounded."""

import json
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import UserError

ALWAYS_TOLERATED = 10
"""Bad samples of a dataset that never stop a run: a share means little among a few samples."""
KEPT_IN_MEMORY = 1000


@dataclass(frozen=True)
class BadRecord:
    dataset: str
    key: str
    shard: str
    offset: int
    """Of the image's bytes in the shard."""
    position: int
    """Where it was to come in the order; another sample came instead."""
    reason: str


class Ledger:
    """In the order of the positions. With a `path`, each record is appended there as a JSON line."""

    def __init__(self, most_bad: float, path: Path | None = None) -> None:
        self.recent: deque[BadRecord] = deque(maxlen=KEPT_IN_MEMORY)
        self.decoded: Counter[str] = Counter()
        """Usable samples by dataset."""
        self.bad: Counter[str] = Counter()
        """Unusable ones."""
        self._most_bad = most_bad
        self._path = path

    def count(self, dataset: str) -> None:
        """A usable sample."""
        self.decoded[dataset] += 1

    def add(self, record: BadRecord) -> None:
        """Raises UserError once the dataset's share of bad samples is above the limit."""
        self.recent.append(record)
        self.bad[record.dataset] += 1
        bad = self.bad[record.dataset]
        seen = bad + self.decoded[record.dataset]
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        if bad > ALWAYS_TOLERATED and bad > self._most_bad * seen:
            raise UserError(
                f"{bad} of {seen} samples of {record.dataset} were unusable, more than the stream's "
                f"max_bad_share of {self._most_bad:g}. The last one: {record.key} in {record.shard} at "
                f"byte {record.offset}: {record.reason}. Check the shard set with "
                "`python -m sharding verify`, or allow more."
            )
