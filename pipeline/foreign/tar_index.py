"""The index of one tar that another tool wrote: a row for every sample in it, usable or not and why."""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
from pydantic import ValidationError

from pipeline.annotation import Annotation, Task, sample_key, summarise
from pipeline.foreign.fields import FieldMap
from pipeline.foreign.reader import MAX_MEMBER_BYTES, ForeignSample, Member, read_samples
from pipeline.rendering.decode import MOST_HALVINGS, PNG_SIGNATURE, decode, image_size
from pipeline.shards import (
    INDEX_SCHEMA,
    OK,
    QUARANTINED,
    Manifest,
    index_name,
    parquet_bytes,
    sha256,
)
from pipeline.stores.local import file_sha256, local_copy
from pipeline.stores.store import Location

INDEX_VERSION = 1
MADE_BY = "pipeline index"
NO_IMAGE, NO_JSON, TWICE = "no image", "no JSON", "a sample of this name comes before it"
DOTTED = "no image: its name has a dot before the extension, where webdataset cuts it"
MOST_REASON = 200
"""Characters of a reason: validation quotes what it found."""


@dataclass(frozen=True)
class Labels:
    """What is said about all samples of a set, and how its tars are read."""

    dataset: str
    split: str
    task: Task
    domain: str
    licence: str
    fields: FieldMap | None = None
    """How to read their JSON; None: it is our annotation."""
    check: Literal["header", "full"] = "header"
    """`full` decodes every image once."""
    group: int = 1
    """So many neighbours that show one identity stay together in the stream."""

    def plan(self) -> dict[str, Any]:
        """All that decides the rows; as the sharding job's plan, it lies in every index."""
        return {
            "made_by": MADE_BY,
            "version": INDEX_VERSION,
            "dataset": self.dataset,
            "split": self.split,
            "excluded": {},
            "settings": self._settings(),
        }

    @cached_property
    def plan_hash(self) -> str:
        return sha256(json.dumps(self.plan(), sort_keys=True).encode())

    def manifest(self) -> Manifest:
        """The set's, without its shards."""
        return Manifest(
            dataset=self.dataset,
            domain=self.domain,
            split=self.split,
            task=self.task,
            shards=(),
            samples=0,
            quarantined=0,
            source_samples=0,
            persons=0,
            ignored=0,
            settings={"plan_version": INDEX_VERSION, **self._settings()},
            plan_hash=self.plan_hash,
            licence=self.licence,
            foreign=True,
            fields=self.fields,
        )

    def _settings(self) -> dict[str, Any]:
        fields = self.fields and self.fields.model_dump()
        names = ("task", "domain", "check", "group")
        return {**{name: getattr(self, name) for name in names}, "fields": fields}


@dataclass(frozen=True)
class TarPlace:
    """A tar to index."""

    file: str
    """Its name below the folder that is indexed."""
    location: Location
    size: int
    tar: str
    """`Shard.tar`."""
    shard: str
    variant: int

    @property
    def stem(self) -> str:
        """What tells its samples from those of other tars, the same in all variants."""
        return self.file.removesuffix(".tar") if self.tar else self.shard


def index_tar(labels: Labels, place: TarPlace, out: Location) -> None:
    """Writes the index. Raises ForeignTar, or OSError if a store keeps failing."""
    rows = _Rows(labels, place)
    with local_copy(place.location) as path:
        for sample in read_samples(path):
            rows.add(sample)
        tar_bytes, tar_sha256 = path.stat().st_size, file_sha256(path)
    metadata = {
        "plan_hash": labels.plan_hash,
        "plan": json.dumps(labels.plan(), sort_keys=True),
        "tar_bytes": str(tar_bytes),
        "tar_sha256": tar_sha256,
        "tar": place.tar,
        "others": json.dumps(rows.others, sort_keys=True),
    }
    table = pa.Table.from_pylist(rows.rows, INDEX_SCHEMA.with_metadata(metadata))
    out.child(index_name(place.variant, place.shard)).write(parquet_bytes(table))


@dataclass
class _Rows:
    """The rows of one tar, in its order."""

    labels: Labels
    place: TarPlace
    rows: list[dict[str, Any]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Members that are left alone, by extension."""
    _names: Counter[str] = field(default_factory=Counter)
    _shown: str | None = None
    """The identity of the run that was begun last."""
    _run: int = -1
    _run_length: int = 0

    @cached_property
    def _manifest(self) -> Manifest:
        return self.labels.manifest()

    def add(self, sample: ForeignSample) -> None:
        self.others += sample.others()
        row = dict.fromkeys(INDEX_SCHEMA.names)
        row.update(origin=f"{self.place.file}/{sample.name}", identities=[])
        try:
            row.update(self._usable(sample), status=OK)
        except ValueError as error:
            row.update(key=self._own_key(sample.name), status=QUARANTINED, reason=_reason(error))
        self._names[sample.name] += 1
        self.rows.append(row)

    def _own_key(self, name: str) -> str:
        """A key that no other sample of the set has: names may come again in other tars, and in this one."""
        again = f" {count}" if (count := self._names[name]) else ""
        return sample_key(
            self.labels.dataset, self.labels.split, f"{self.place.stem}/{name}{again}"
        )

    def _usable(self, sample: ForeignSample) -> dict[str, Any]:
        """The row of a sample that can be used. Raises ValueError."""
        if self._names[sample.name]:
            raise ValueError(TWICE)
        image, image_type, size = self._image(sample)
        annotation, text = self._annotation(sample, image, size)
        own = {"origin": annotation.source} if self.labels.fields is None else {}
        return {
            **own,
            "key": annotation.key,
            "run": self._next_run(annotation),
            "image_type": image_type,
            "image_offset": image.offset,
            "image_size": image.size,
            "json_offset": text.offset,
            "json_size": text.size,
            "source_sha256": sha256(image.data or b""),
            "width": annotation.width,
            "height": annotation.height,
            **summarise(annotation.persons),
        }

    def _image(self, sample: ForeignSample) -> tuple[Member, str, tuple[int, int]]:
        """The member, its type, and the image's height and width."""
        if not sample.images:
            raise ValueError(DOTTED if sample.hidden_images else NO_IMAGE)
        if len(sample.images) > 1:
            raise ValueError(f"several images: {', '.join(sample.images)}")
        image = sample.members[sample.images[0]]
        data = _whole(image)
        # By its content: tools keep a name's ending, whatever they downloaded.
        image_type = "png" if data.startswith(PNG_SIGNATURE) else "jpg"
        size = image_size(data, image_type)
        if self.labels.check == "full":
            decode(data, image_type, MOST_HALVINGS if image_type == "jpg" else 0)
        return image, image_type, size

    def _annotation(
        self, sample: ForeignSample, image: Member, size: tuple[int, int]
    ) -> tuple[Annotation, Member]:
        """With where its JSON lies: if there is none, nothing behind the image."""
        text = sample.json or Member(image.offset + image.size, 0, b"")
        if self.labels.fields is None and sample.json is None:
            raise ValueError(NO_JSON)
        annotation = self._manifest.annotation(_whole(text), self._own_key(sample.name), size)
        if self.labels.fields is None:
            self._check_ours(annotation, sample.name, size)
        return annotation, text

    def _check_ours(self, annotation: Annotation, name: str, size: tuple[int, int]) -> None:
        if (annotation.height, annotation.width) != size:
            raise ValueError("the image has not the size that its annotation says")
        if annotation.key != name:
            raise ValueError("named otherwise in the tar than in its annotation")
        for label in ("dataset", "domain", "split", "task"):
            found, said = getattr(annotation, label), getattr(self.labels, label)
            if found != said:
                raise ValueError(f"its annotation says {label} {found!r}, not {said!r}")

    def _next_run(self, annotation: Annotation) -> int:
        people = {person.identity for person in annotation.persons}
        shown = people.pop() if len(people) == 1 else None
        if shown is None or shown != self._shown or self._run_length == self.labels.group:
            self._shown, self._run, self._run_length = shown, self._run + 1, 0
        self._run_length += 1
        return self._run


def _whole(member: Member) -> bytes:
    if member.data is None:
        raise ValueError(f"a member of more than {MAX_MEMBER_BYTES:,} bytes")
    return member.data


def _reason(error: ValueError) -> str:
    return _words(error)[:MOST_REASON]


def _words(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return " ".join(f"its JSON is not our annotation: {where} {problem['msg']}".split())
