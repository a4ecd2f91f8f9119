"""Protocols of a shard set as numbers: who is asked for, in which images, and where they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotation import Annotation, Box
from training.evaluation.benchmarks import Benchmark, are_in_regions
from training.evaluation.detection import match
from training.evaluation.found import Grouped, Scored
from training.evaluation.overlap import Boxes
from training.evaluation.search import Queries, Rows


@dataclass(frozen=True)
class Images:
    """All images of a set, and those that a protocol names and the set has not."""

    keys: tuple[str, ...]
    annotations: tuple[Annotation | None, ...]
    """None: it could not be read, or is not there."""

    @property
    def number(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}


@dataclass(frozen=True)
class People(Grouped):
    """Everybody who is annotated, as the benchmark reads the boxes."""

    identities: tuple[str | None, ...]

    @classmethod
    def annotated(cls, images: Images, benchmark: Benchmark) -> "People":
        persons = [
            [person for person in one.persons if not person.ignore] if one else []
            for one in images.annotations
        ]
        boxes = [np.array([person.box for person in some]).reshape(-1, 4) for some in persons]
        grouped = Grouped.of([benchmark.read_boxes(some) for some in boxes])
        identities = tuple(person.identity for some in persons for person in some)
        return cls(grouped.first, grouped.boxes, identities)

    def labelled(self) -> Grouped:
        """Those with an identity."""
        kept = np.array([identity is not None for identity in self.identities], bool)
        before = np.concatenate([[0], kept.cumsum()])
        return Grouped(before[self.first], self.boxes[kept])

    def places(self) -> dict[str, tuple[Rows, Rows]]:
        """Of each identity the images that show it, and its row there: the first, of several."""
        found: dict[str, dict[int, int]] = {}
        for row, (image, identity) in enumerate(zip(self.image().tolist(), self.identities)):
            if identity is not None:
                found.setdefault(identity, {}).setdefault(image, row)
        return {
            identity: (np.array([*rows], np.int64), np.array([*rows.values()], np.int64))
            for identity, rows in found.items()
        }


@dataclass(frozen=True)
class Asked:
    """The queries of a protocol, in its order."""

    names: tuple[str, ...]
    image: Rows
    """(Q,) the image that shows each."""
    boxes: tuple[Box, ...]
    """Of each there, as annotated."""
    galleries: tuple[Rows, ...]
    """Images to search, without the query's own."""
    query: Rows
    """(T,) ascending, with `place_image` and `place_boxes`: see `Queries`."""
    place_image: Rows
    place_boxes: Boxes
    as_annotated: bool
    """Places are those of the annotations; else the protocol lists them."""
    own_listed: int
    """Queries whose gallery names their own image, which is passed over."""

    def with_embeddings(self, embeddings: NDArray[np.float32]) -> Queries:
        return Queries(
            embeddings,
            self.galleries.__getitem__,
            self.query,
            self.place_image,
            self.place_boxes,
        )


def query_boxes(protocols: Iterable[pa.Table]) -> dict[str, tuple[Box, ...]]:
    """By key, the boxes of all queries; what a model embeds once for all protocols of a set."""
    boxes: dict[str, dict[Box, None]] = {}
    for table in protocols:
        for key, box in zip(table["key"].to_pylist(), table["box"].to_pylist()):
            boxes.setdefault(key, {})[tuple(box)] = None
    return {key: tuple(sorted(boxes[key])) for key in sorted(boxes)}


def named_keys(protocols: Iterable[pa.Table]) -> set[str]:
    """Of all samples that queries, galleries and positives name."""
    keys: set[str] = set()
    for table in protocols:
        keys.update(table["key"].to_pylist())
        for chunk in table["gallery"].chunks:
            keys.update(chunk.flatten().unique().to_pylist())
        for chunk in table["positives"].chunks:
            keys.update(chunk.flatten().field("key").to_pylist())
    return keys


def ask(
    table: pa.Table,
    images: Images,
    people: People,
    benchmark: Benchmark,
    across_cameras: bool = False,
) -> Asked:
    """Raises UserError where a search across cameras is asked for that is not defined."""
    number = images.number
    keys = table["key"].to_pylist()
    own = np.array([number[key] for key in keys], np.int64)
    listed = _galleries(table, number)
    everything = np.arange(len(images.keys))
    cameras = _cameras(images, benchmark) if across_cameras else None
    galleries: list[Rows] = []
    for image, gallery in zip(own, listed):
        searched = everything if gallery is None else gallery
        allowed = searched != image
        if cameras is not None:
            allowed &= cameras[searched] != cameras[image]
        galleries.append(searched[allowed])
    places = _places(table, number, people, benchmark)
    query, place_image, place_boxes = _inside(places, galleries)
    return Asked(
        names=tuple(table["query"].to_pylist()),
        image=own,
        boxes=tuple(tuple(box) for box in table["box"].to_pylist()),
        galleries=tuple(galleries),
        query=query,
        place_image=place_image,
        place_boxes=place_boxes,
        as_annotated=table["positives"].null_count > 0,
        own_listed=sum(
            gallery is not None and bool((gallery == image).any())
            for image, gallery in zip(own, listed)
        ),
    )


def are_ignored(
    found: Scored, people: Grouped, images: Images, benchmark: Benchmark
) -> NDArray[np.bool_]:
    """(N,) which detections lie in regions to ignore and are no person, where the benchmark says so."""
    ignored = np.zeros(len(found.boxes), bool)
    if benchmark.ignore_iou is None:
        return ignored
    right = match(found, people)
    for image, annotation in enumerate(images.annotations):
        regions = [person for person in annotation.persons if person.ignore] if annotation else []
        rows = found.rows(np.array([image]))
        wrong = rows[~right[rows]]
        ignored[wrong] = are_in_regions(found.boxes[wrong], regions, benchmark.ignore_iou)
    return ignored


def _galleries(table: pa.Table, number: Mapping[str, int]) -> list[Rows | None]:
    """The images of each gallery; None: all."""
    galleries: list[Rows | None] = []
    for chunk in table["gallery"].chunks:
        values = chunk.values
        names = values.dictionary.to_pylist()
        at = np.array([number[name] for name in names], np.int64)
        codes = values.indices.to_numpy(zero_copy_only=False)
        ends = chunk.offsets.to_numpy()
        galleries += [
            None if is_null else at[codes[start:end]]
            for is_null, start, end in zip(chunk.is_null().to_pylist(), ends[:-1], ends[1:])
        ]
    return galleries


def _cameras(images: Images, benchmark: Benchmark) -> NDArray:
    """(I,) which camera each image is from."""
    camera = benchmark.require_cameras()
    return np.array([camera(key) for key in images.keys])


def _places(
    table: pa.Table, number: Mapping[str, int], people: People, benchmark: Benchmark
) -> list[tuple[Rows, Boxes]]:
    """Images and boxes at which each query's person is said to be."""
    annotated = people.places()
    nowhere = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    places: list[tuple[Rows, Boxes]] = []
    for identity, positives in zip(table["identity"].to_pylist(), table["positives"].to_pylist()):
        if positives is None:
            image, row = annotated.get(identity, nowhere)
            places.append((image, people.boxes[row]))
        else:
            image = np.array([number[one["key"]] for one in positives], np.int64)
            boxes = np.array([one["box"] for one in positives], np.float64).reshape(-1, 4)
            places.append((image, benchmark.read_boxes(boxes)))
    return places


def _inside(
    places: Sequence[tuple[Rows, Boxes]], galleries: Sequence[Rows]
) -> tuple[Rows, Rows, Boxes]:
    """Query, image and box of the places that lie in their query's gallery."""
    queries, images, boxes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros((0, 4))]
    for query, ((image, box), gallery) in enumerate(zip(places, galleries)):
        kept = np.isin(image, gallery)
        queries.append(np.full(int(kept.sum()), query, np.int64))
        images.append(image[kept])
        boxes.append(box[kept])
    return np.concatenate(queries), np.concatenate(images), np.concatenate(boxes)
