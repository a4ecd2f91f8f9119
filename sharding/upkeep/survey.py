"""What a shard set holds, in numbers: of every sample what its index says, of a few what is annotated."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotation import Annotation, Person
from pipeline.errors import UserError
from pipeline.shards import OK, QUARANTINED, Shard, ShardSet, index_name
from pipeline.written import read_indexes

READERS = 16
COLUMNS = ("width", "height", "persons", "ignored", "image_size", "json_offset", "json_size")

Numbers = NDArray[np.int64]


class Place(NamedTuple):
    """Of a sample: number of its shard, and its slot there."""

    shard: int
    slot: int


@dataclass(frozen=True)
class Survey:
    """A row for every usable sample of the first variant, in the order of the shards."""

    columns: dict[str, Numbers]
    """COLUMNS, `shard` and `slot`."""
    images_per_identity: Numbers
    shown: dict[str, list[Place]]
    """Samples of the identities that were asked for."""

    def __len__(self) -> int:
        return len(self.columns["shard"])

    def place(self, row: int) -> Place:
        return Place(int(self.columns["shard"][row]), int(self.columns["slot"][row]))


class AnnotatedSample(NamedTuple):
    place: Place
    annotation: Annotation


class AnnotatedPerson(NamedTuple):
    """Not a region to ignore."""

    sample: AnnotatedSample
    person: Person

    @property
    def height(self) -> float:
        return self.person.box[3] - self.person.box[1]

    @property
    def aspect(self) -> float:
        """Height over width; nan for a box without width."""
        width = self.person.box[2] - self.person.box[0]
        return self.height / width if width > 0 else float("nan")

    @property
    def inside(self) -> float:
        """Share of the box that lies in the image; nan for a box without area."""
        left, top, right, bottom = self.person.box
        image = self.sample.annotation
        width = max(0.0, min(right, image.width) - max(left, 0.0))
        height = max(0.0, min(bottom, image.height) - max(top, 0.0))
        area = (right - left) * (bottom - top)
        return width * height / area if area > 0 else float("nan")


def survey(shard_set: ShardSet, identities: Collection[str] = ()) -> Survey:
    """Reads the indexes of the first variant. Raises UserError if one is not the manifest's."""
    shards = shard_set.shards()
    wanted = pa.array(sorted(identities), pa.string())
    parts: list[dict[str, Numbers]] = []
    people: list[pa.Array] = []
    shown: dict[str, list[Place]] = {identity: [] for identity in identities}
    names = [index_name(0, shard.name) for shard in shards]
    for number, (name, written) in enumerate(read_indexes(shard_set.location, names)):
        if written is None or written.sha256 != shards[number].index_sha256:
            raise UserError(
                f"{shard_set.url}/{name} is not the index that the manifest names. `python -m sharding "
                f"verify {shard_set.url}` tells what else is wrong."
            )
        slots = written.table.filter(pc.not_equal(written.table["status"], QUARANTINED))
        usable = pc.equal(slots["status"], OK).to_numpy().astype(bool)
        rows = slots.filter(pa.array(usable))
        part = {column: rows[column].to_numpy().astype(np.int64) for column in COLUMNS}
        part |= {"shard": np.full(len(rows), number), "slot": np.flatnonzero(usable)}
        parts.append(part)
        listed = rows["identities"].combine_chunks()
        people.append(listed.flatten())
        holds = pc.is_in(people[-1], wanted)
        owners = pc.list_parent_indices(listed).filter(holds).to_pylist()
        for identity, row in zip(people[-1].filter(holds).to_pylist(), owners, strict=True):
            shown[identity].append(Place(number, int(part["slot"][row])))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counts = pc.value_counts(pa.chunked_array(people, pa.string())).field("counts")
    return Survey(columns, counts.to_numpy().astype(np.int64), shown)


def annotated_samples(
    shard_set: ShardSet, numbers: Survey, count: int, seed: int
) -> list[AnnotatedSample]:
    """Up to `count` samples drawn at random; those that cannot be read are left out."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(numbers))[:count])
    shards = shard_set.shards()

    def read_one(row: int) -> AnnotatedSample | None:
        return _read_annotation(shard_set, shards, numbers, row)

    with ThreadPoolExecutor(READERS) as readers:
        return [sample for sample in readers.map(read_one, rows) if sample is not None]


def annotated_persons(samples: list[AnnotatedSample]) -> list[AnnotatedPerson]:
    return [AnnotatedPerson(sample, person) for sample, person in _persons(samples)]


def _persons(samples: list[AnnotatedSample]) -> Iterator[tuple[AnnotatedSample, Person]]:
    for sample in samples:
        yield from ((sample, person) for person in sample.annotation.persons if not person.ignore)


def _read_annotation(
    shard_set: ShardSet, shards: list[Shard], numbers: Survey, row: int
) -> AnnotatedSample | None:
    place = numbers.place(row)
    start, size, height, width = (
        int(numbers.columns[name][row]) for name in ("json_offset", "json_size", "height", "width")
    )
    try:
        data = shard_set.tar(shards[place.shard]).read(start, start + size)
        unnamed = f"{place.shard}/{place.slot}"
        return AnnotatedSample(place, shard_set.manifest.annotation(data, unnamed, (height, width)))
    except (OSError, ValueError):
        return None
