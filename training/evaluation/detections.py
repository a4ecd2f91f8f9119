"""What a model finds in all images of a shard set, in chunks, so that a killed evaluation goes on.

OUT/detections/DIGEST/000012.parquet: a row an image. The digest is of all that decides the content:
weights, settings, the set, the queries of its protocols, and whether a CPU or a GPU computes. Chunks are the
same for any number of ranks.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from pipeline.annotation import Annotation, Box
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.rendering.decode import DecodeError
from pipeline.samples import BadSample, SampleReader
from pipeline.shards import parquet_bytes, read_parquet
from training.evaluation.found import Detections, Scored, joined, starts
from training.evaluation.scenes import Scene, decode_scene, find_people
from training.evaluation.weights import Weights
from training.files import replacing
from training.model.inference import Finder, InferenceConfig

FORMAT = 2
"""Of the files, and of how they are computed: a new number makes old ones stale."""
LEFTOVER = re.compile(r"\..+\.\d+")
"""A file that `write_whole` was writing."""
LOADERS = 4
"""Threads that read and decode."""
CHUNK_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("problem", pa.string()),  # why nothing could be found in it, else null
        ("annotation", pa.string()),  # as stored; null if it could not be read
        ("boxes", pa.list_(pa.float32())),  # xyxy after xyxy, in pixels of the image
        ("scores", pa.list_(pa.float32())),  # descending
        ("embeddings", pa.list_(pa.float32())),  # of those with the search score or more
        ("known", pa.list_(pa.float32())),  # embeddings of `known_boxes`, in their order
    ]
)


QueryBoxes = Mapping[str, Sequence[Box]]
"""By the key of an image, the boxes in it that are asked for."""


def known_boxes(annotation: Annotation, queries: QueryBoxes) -> list[Box]:
    """Where an image is embedded whatever is detected there: at everybody annotated who counts, in their
    order, then at the boxes asked for that are not among these."""
    people = [person.box for person in annotation.persons if not person.ignore]
    return [*people, *(box for box in queries.get(annotation.key, ()) if box not in people)]


class EvaluationConfig(Config):
    size: tuple[PositiveInt, PositiveInt] | None = None
    """Short and long side that scenes are fitted into, aspect kept; null: as in training. NAE: 900, 1500."""
    batch: int = Field(default=1, gt=0)
    """Scenes at once on a device."""
    chunk: int = Field(default=32, gt=0)
    """Images a file: what is lost when an evaluation is killed."""
    search_score: float = Field(default=0.5, ge=0, le=1)
    """Detections from here up are searched."""
    weigh: bool = True
    """Similarity times the detection's score: NAE's class-weighted similarity."""
    inference: InferenceConfig = InferenceConfig()

    @model_validator(mode="after")
    def _check(self) -> "EvaluationConfig":
        if self.search_score < self.inference.min_score:
            raise ValueError("`search_score` must not be below `inference.min_score`")
        return self

    def scene_size(self, weights: Weights) -> tuple[int, int]:
        """Short and long side."""
        short, long = sorted(self.size or weights.trained.scene_size)
        return short, long


@dataclass(frozen=True)
class Plan:
    """Which image lies in which chunk, and where the chunks are written."""

    places: tuple[tuple[int, int], ...]
    """Shard and slot of every image of the set."""
    chunk: int
    folder: Path

    @property
    def chunks(self) -> range:
        return range(-(-len(self.places) // self.chunk))

    def images(self, chunk: int) -> Sequence[tuple[int, int]]:
        return self.places[chunk * self.chunk : (chunk + 1) * self.chunk]

    def file(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.parquet"

    def missing(self) -> list[int]:
        return [chunk for chunk in self.chunks if not self.file(chunk).exists()]

    def try_again(self) -> None:
        """Removes chunks with an image that could not be read: it may be readable now.

        To be called while nobody writes. Raises UserError on a damaged chunk.
        """
        for chunk in set(self.chunks) - set(self.missing()):
            if _has_problem(self.file(chunk)):
                self.file(chunk).unlink()


def make_plan(
    reader: SampleReader,
    weights: Weights,
    config: EvaluationConfig,
    queries: QueryBoxes,
    device: torch.device,
    out: Path,
) -> Plan:
    """Of what is computed on such a device: a CPU and a GPU round differently, and fill different folders."""
    places = tuple((s, slot) for s, slots in enumerate(reader.slots) for slot in range(slots))
    decides = {
        "format": FORMAT,
        "weights": weights.trained.sha256,
        "model": weights.model.config.model_dump(mode="json"),
        "settings": config.model_dump(mode="json", exclude={"weigh", "size"}),
        "size": config.scene_size(weights),
        "set": reader.shard_set.manifest_sha256,
        "queries": list(queries.items()),
        "device": device.type,
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return Plan(places, config.chunk, out / "detections" / digest[:16])


class Evaluator:
    """Fills the chunks of a plan."""

    def __init__(
        self,
        plan: Plan,
        reader: SampleReader,
        weights: Weights,
        config: EvaluationConfig,
        queries: QueryBoxes,
    ) -> None:
        self.plan, self._reader, self._config, self._queries = plan, reader, config, queries
        self._size = config.scene_size(weights)
        self._finder = Finder(weights.model, config.inference)

    def run(self, rank: int, world_size: int) -> Iterator[int]:
        """Fills a rank's share, every world_size-th chunk, and yields each when it is there.

        Chunks that are there already are passed over, whoever made them.
        """
        mine = [chunk for chunk in self.plan.missing() if chunk % world_size == rank]
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(LOADERS, "evaluation") as pool:
            loading: list[Future[_Loaded]] = []
            for place, chunk in enumerate(mine):
                following = mine[place + 1 : place + 2]
                loading = loading or self._load(pool, chunk)
                ahead = self._load(pool, following[0]) if following else []
                self._write(chunk, [one.result() for one in loading])
                loading = ahead
                yield chunk

    def _load(self, pool: ThreadPoolExecutor, chunk: int) -> "list[Future[_Loaded]]":
        return [pool.submit(self._load_image, *place) for place in self.plan.images(chunk)]

    def _load_image(self, shard: int, slot: int) -> "_Loaded":
        key = self._reader.key(shard, slot)
        try:
            annotation, image, image_type = self._reader.read(0, shard, slot)
        except BadSample as error:
            return _Loaded(key, None, None, str(error))
        known = np.array(known_boxes(annotation, self._queries), np.float64).reshape(-1, 4)
        try:
            scene = decode_scene(image, image_type, self._size, known)
        except DecodeError as error:
            return _Loaded(key, annotation, None, str(error))
        return _Loaded(key, annotation, scene, None)

    def _write(self, chunk: int, images: "Sequence[_Loaded]") -> None:
        scenes = [one.scene for one in images if one.scene is not None]
        found = iter(find_people(self._finder, scenes, self._config.batch))
        rows = []
        for one in images:
            row: dict[str, object] = {"key": one.key, "problem": one.problem}
            row["annotation"] = one.annotation and one.annotation.to_json().decode()
            if one.scene is not None:
                people = next(found)
                searched = int((people.scores >= self._config.search_score).sum())
                row["boxes"] = people.boxes.flatten().numpy()
                row["scores"] = people.scores.numpy()
                row["embeddings"] = people.embeddings[:searched].flatten().numpy()
                row["known"] = people.asked.flatten().numpy()
            rows.append(row)
        write_whole(self.plan.file(chunk), parquet_bytes(pa.Table.from_pylist(rows, CHUNK_SCHEMA)))


@dataclass(frozen=True)
class _Loaded:
    key: str | None
    """None: forgotten."""
    annotation: Annotation | None
    scene: Scene | None
    problem: str | None


@dataclass(frozen=True)
class Gathered:
    """All chunks: what was found, and what could not be read."""

    keys: tuple[str, ...]
    annotations: tuple[Annotation | None, ...]
    problems: dict[str, str]
    """By key."""
    found: Scored
    """From `min_score` up."""
    searched: NDArray[np.bool_]
    """(N,) which of them have the search score or more ..."""
    detections: Detections
    """... and these, with embeddings."""
    known: tuple[NDArray[np.float32], ...]
    """Of each image, embeddings (K, D) of its `known_boxes`; none where it could not be read."""


def gather(plan: Plan, width: int) -> Gathered:
    """`width`: of the embeddings. Raises UserError on a chunk that is not there or is damaged."""
    rows = [row for chunk in plan.chunks for row in _read(plan.file(chunk)) if row.key is not None]
    found = Scored(
        starts([len(row.scores) for row in rows]),
        joined([row.boxes.astype(np.float64) for row in rows], 4),
        np.concatenate([np.zeros(0, np.float32), *(row.scores for row in rows)]),
    )
    vectors = [row.embeddings.reshape(-1, width) for row in rows]
    embedded = [np.arange(len(row.scores)) < len(some) for row, some in zip(rows, vectors)]
    searched = np.concatenate([np.zeros(0, bool), *embedded])
    some = found.where(searched)
    embeddings = np.concatenate([np.zeros((0, width), np.float32), *vectors])
    return Gathered(
        keys=tuple(str(row.key) for row in rows),
        annotations=tuple(row.annotation for row in rows),
        problems={str(row.key): row.problem for row in rows if row.problem},
        found=found,
        searched=searched,
        detections=Detections(some.first, some.boxes, some.scores, embeddings),
        known=tuple(row.known.reshape(-1, width) for row in rows),
    )


@dataclass(frozen=True)
class _Row:
    key: str | None
    problem: str | None
    annotation: Annotation | None
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    known: NDArray[np.float32]


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read ({error}). Delete it and evaluate again.") from None


def _has_problem(file: Path) -> bool:
    """Apart from forgotten images, which nothing brings back."""
    with _readable(file), pq.ParquetFile(file, page_checksum_verification=True) as chunk:
        table = chunk.read(["key", "problem"], use_threads=False)
    return any(
        key is not None and problem is not None
        for key, problem in zip(table["key"].to_pylist(), table["problem"].to_pylist())
    )


def _read(file: Path) -> list[_Row]:
    with _readable(file):
        table = read_parquet(file.read_bytes())
    texts = table["annotation"].to_pylist()
    return [
        _Row(key, problem, text and Annotation.from_json(text.encode()), *numbers)
        for key, problem, text, *numbers in zip(
            table["key"].to_pylist(),
            table["problem"].to_pylist(),
            texts,
            *(_lists(table[name]) for name in ("boxes", "scores", "embeddings", "known")),
        )
    ]


def _lists(column: pa.ChunkedArray) -> list[NDArray[np.float32]]:
    """Nulls are empty."""
    empty = np.zeros(0, np.float32)
    return [empty if one.values is None else one.values.to_numpy() for one in column]


def write_whole(path: Path, data: bytes) -> None:
    """Readers see the whole file or none, also after a crash. Raises UserError where it cannot be written."""
    try:
        with replacing(path, mark=str(os.getpid())) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}. Mend that, then run the same command again."
        ) from None


def remove_leftovers(folder: Path) -> None:
    """Of writers that were killed in `write_whole`."""
    for path in folder.glob(".*"):
        if LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink()
