"""The look-up table's rows: (dataset, identity) -> row, append-only, stored with a run."""

from collections.abc import Iterable
from functools import cached_property

from pydantic import BaseModel, ConfigDict


class Identities(BaseModel):
    """Rows are numbered in the order in which identities were added and never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    pairs: tuple[tuple[str, str], ...] = ()
    """Dataset and identity of each row."""

    @property
    def num_rows(self) -> int:
        return len(self.pairs)

    def row(self, dataset: str, identity: str | None) -> int:
        """-1 for a person without identity, and for an identity that has no row."""
        return -1 if identity is None else self._rows.get((dataset, identity), -1)

    def extended(self, dataset: str, identities: Iterable[str]) -> "Identities":
        """With rows for those of `identities` that had none."""
        added = [(dataset, identity) for identity in identities]
        return Identities(pairs=tuple(dict.fromkeys([*self.pairs, *added])))

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Identities":
        """Raises ValueError (pydantic's) on anything else."""
        return cls.model_validate_json(data)

    @cached_property
    def _rows(self) -> dict[tuple[str, str], int]:
        return {pair: row for row, pair in enumerate(self.pairs)}
