"""What an adapter is: it lists a native release as unified records and reads one sample's bytes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import pyarrow as pa
from pydantic import JsonValue

from pipeline.annotation import Person, Task
from sharding.reading import map_reads
from sharding.source import Source

T = TypeVar("T")

WHOLE_CROP = (0.0, 0.0, 0.0, 0.0)
"""Box of the person of a re-ID crop: all of it. The canvas turns it into a real box."""

MISSING = "missing from the source"


@dataclass(frozen=True, slots=True)
class SourceSample:
    """One sample as its release describes it, before any image was opened."""

    key: str
    locator: str
    """What `read` needs: of a file what `Source` calls so, a database key, a cell of a .mat file."""
    origin: str
    """Full name for people, written into the annotation: file, archive member or database key."""
    size_bytes: int
    """Bytes of the coded image in the source, or their estimate where it stores raw arrays."""
    persons: tuple[Person, ...] = ()
    """Of a re-ID crop: exactly one, its box WHOLE_CROP."""
    expected_size: tuple[int, int] | None = None
    """Width and height that the source's annotation claims."""
    tags: tuple[str, ...] = ()
    extra: dict[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FaultySample:
    """A sample that its release names and does not hold: quarantined, and the job goes on."""

    key: str
    """The one that it would have if it could be read."""
    origin: str
    reason: str = MISSING
    """The same words wherever the source lies: no path above it."""


@dataclass(frozen=True)
class Published:
    """A figure that the release's authors or users published, and how far it was checked."""

    what: str
    """`images`, `persons`, `identities` ..."""
    number: int
    evidence: str
    """V verified on real files, S read in a named source, R remembered."""


@dataclass(frozen=True)
class Listing:
    """All samples of one split, what is wrong with it, and what was left out on purpose."""

    samples: Sequence[SourceSample]
    total: int
    """Samples that the release names, counted before any was sorted out."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Source samples left out, by rule (`no pedestrian`: 12)."""
    faulty: tuple[FaultySample, ...] = ()
    found: dict[str, int] = field(default_factory=dict)
    """What the split really holds, faulty samples not counted, under the names of `Published.what`."""
    protocols: Mapping[str, pa.Table] = field(default_factory=dict)
    """Of a person-search split: PROTOCOL_SCHEMA tables by name, `TestG50` say."""


def read_samples(
    source: Source, read: Callable[[T], SourceSample | FaultySample], items: Iterable[T]
) -> tuple[list[SourceSample], list[FaultySample]]:
    """What `read` makes of each, in the order of `items`; from a store several at a time."""
    listed = list(map_reads(source, read, items))
    samples = [one for one in listed if isinstance(one, SourceSample)]
    return samples, [one for one in listed if isinstance(one, FaultySample)]


def count_identities(crops: Iterable[SourceSample]) -> int:
    return len({person.identity for crop in crops for person in crop.persons})


class Adapter(Protocol):
    """One dataset. Stateless: handles to databases are opened inside the worker that reads."""

    name: str
    task: Task
    licence: str
    """What binds whoever holds shards made from it, in one sentence."""
    homepage: str
    splits: Mapping[str, tuple[Published, ...]]
    """Every split that `list_samples` takes, with its published figures."""

    def list_samples(self, source: Source, split: str) -> Listing:
        """Lists `split` in a stable order. Raises UserError naming a missing annotation or folder."""
        ...

    def read(self, source: Source, locator: str) -> bytes:
        """The sample's coded image (JPEG or PNG). Raises FileNotFoundError, OSError or ValueError."""
        ...
