"""The ledger of samples that could not be used: counted, written down, and bounded."""

import json
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import UserError

ALWAYS_TOLERATED = 10
"""Bad samples of a dataset that never exceed its share: that means little among a few samples."""
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

    def __init__(self, most_bad: float, longest_run: int, path: Path | None = None) -> None:
        self.recent: deque[BadRecord] = deque(maxlen=KEPT_IN_MEMORY)
        self.decoded: Counter[str] = Counter()
        """Usable samples by dataset."""
        self.bad: Counter[str] = Counter()
        """Unusable ones."""
        self._run: Counter[str] = Counter()
        """Unusable ones since the last position whose own sample was usable."""
        self._most_bad, self._longest_run = most_bad, longest_run
        self._path = path

    def count(self, dataset: str, replaced: bool) -> None:
        """A usable sample; `replaced`: it stands in for others."""
        self.decoded[dataset] += 1
        if not replaced:
            self._run[dataset] = 0

    def add(self, records: Iterable[BadRecord]) -> None:
        """Raises UserError once the dataset's share of bad samples, or a run of them, is above its limit."""
        for record in records:
            self.recent.append(record)
            self.bad[record.dataset] += 1
            self._run[record.dataset] += 1
            if self._path is not None:
                with open(self._path, "a") as file:
                    file.write(json.dumps(asdict(record)) + "\n")
            self._check(record)

    def _check(self, last: BadRecord) -> None:
        bad, run = self.bad[last.dataset], self._run[last.dataset]
        seen = bad + self.decoded[last.dataset]
        if bad > ALWAYS_TOLERATED and bad > self._most_bad * seen:
            found = f"{bad} of {seen} samples of {last.dataset} were unusable, more than"
            limit = f"max_bad_share of {self._most_bad:g}"
        elif run >= self._longest_run:
            found = f"{run} samples of {last.dataset} in a row were unusable, which reaches"
            limit = f"max_bad_run of {self._longest_run}"
        else:
            return
        raise UserError(
            f"{found} the stream's {limit}. The last one: {last.key} in {last.shard} at byte "
            f"{last.offset}: {last.reason}. Check the shard set with `python -m sharding verify`, or "
            "allow more."
        )
