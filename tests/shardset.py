"""Small shard sets written here and now: the fast fixture of the stream's tests."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import webdataset

from pipeline.annotation import Annotation, Canvas, Person, Task
from pipeline.shards import (
    FORGOTTEN,
    INDEX_SCHEMA,
    MANIFEST,
    OK,
    QUARANTINED,
    Manifest,
    Shard,
    ShardSet,
    index_name,
    sha256,
    tar_name,
)


@dataclass(frozen=True)
class Item:
    """A sample to be written; its annotation's key says where it stands."""

    annotation: Annotation
    image: bytes
    image_type: str = "jpg"
    run: int = 0
    status: str = OK


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth random picture: what codecs and resizing are made for."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def scene_items(count: int, dataset: str = "crowd", domain: str | None = None) -> list[Item]:
    """Scenes of 96 x 128 with two people, one of them partly outside, and an ignored region."""
    items = []
    for number in range(count):
        people = (
            Person(box=(10.0, 12.5, 40.0, 90.0)),
            Person(box=(100.0, 20.0, 140.0, 100.0)),
            Person(box=(60.0, 5.0, 80.0, 30.0), ignore=True),
        )
        annotation = Annotation(
            version=1,
            key=f"{dataset}/train/{number:05d}",
            dataset=dataset,
            domain=domain or dataset,
            split="train",
            task="detection",
            width=128,
            height=96,
            persons=people,
            source=f"{number}.jpg",
        )
        image = simplejpeg.encode_jpeg(picture(96, 128, number), 90)
        items.append(Item(annotation, image, run=number))
    return items


def canvas_items(
    count: int, dataset: str = "market", per_run: int = 2, labelled: bool = True, variant: int = 0
) -> list[Item]:
    """Canvases of 96 x 64, `per_run` of each identity in a run."""
    items = []
    for number in range(count):
        identity = number // per_run
        left = 8.0 + 4 * variant
        annotation = Annotation(
            version=1,
            key=f"{dataset}/train/{number:05d}",
            dataset=dataset,
            domain=dataset,
            split="train",
            task="reid",
            width=64,
            height=96,
            persons=(
                Person(
                    box=(left, 16.0, left + 32, 80.0),
                    identity=f"train:{identity:04d}" if labelled else None,
                ),
            ),
            crop_size=(32, 64),
            canvas=Canvas(ratio=(2.0, 1.5), offset=(left, 16.0), variant=variant),
            source=f"{number}.jpg",
        )
        image = simplejpeg.encode_jpeg(picture(96, 64, 1000 * variant + number), 90)
        items.append(Item(annotation, image, run=identity if labelled else number))
    return items


def write_shard_set(root: Path, variants: Sequence[list[list[Item]]]) -> str:
    """Writes variants -> shards -> samples in the format of `pipeline.shards`; returns the URL."""
    shards = [
        _write_shard(root, variant, f"{number:06d}", items)
        for variant, listed in enumerate(variants)
        for number, items in enumerate(listed)
    ]
    first = [item for items in variants[0] for item in items]
    record = first[0].annotation
    people = [p for item in first if item.status == OK for p in item.annotation.persons]
    manifest = Manifest(
        dataset=record.dataset,
        domain=record.domain,
        split=record.split,
        task=record.task,
        shards=tuple(shards),
        variants=len(variants),
        samples=sum(item.status == OK for item in first),
        quarantined=sum(item.status == QUARANTINED for item in first),
        source_samples=len(first),
        persons=sum(not p.ignore for p in people),
        ignored=sum(p.ignore for p in people),
        identities=tuple(sorted({p.identity for p in people if p.identity})),
        plan_hash="0" * 64,
        licence="generated",
    )
    ShardSet(str(root)).location.child(MANIFEST).write(manifest.to_json())
    return str(root)


def simple_set(root: Path, task: Task, shards: int, per_shard: int, **options: object) -> str:
    """A shard set of equal shards."""
    make = scene_items if task == "detection" else canvas_items
    items = make(shards * per_shard, **options)  # type: ignore[operator]
    return write_shard_set(
        root, [[items[s * per_shard : (s + 1) * per_shard] for s in range(shards)]]
    )


def _write_shard(root: Path, variant: int, name: str, items: list[Item]) -> Shard:
    tar = root / tar_name(variant, name)
    tar.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(tar), encoder=False, mtime=0) as writer:
        for item in items:
            if item.status == OK:
                key = item.annotation.key
                writer.write(
                    {
                        "__key__": key,
                        item.image_type: item.image,
                        "json": item.annotation.to_json(),
                    }
                )
    data = tar.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        members = {m.name: (m.offset_data, m.size) for m in opened.getmembers()}
    rows = [_row(item, members) for item in items]
    index = root / index_name(variant, name)
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), index)
    return Shard(
        name=name,
        variant=variant,
        tar_bytes=len(data),
        tar_sha256=sha256(data),
        index_sha256=sha256(index.read_bytes()),
        planned=len(items),
        ok=sum(item.status == OK for item in items),
        quarantined=sum(item.status == QUARANTINED for item in items),
        forgotten=sum(item.status == FORGOTTEN for item in items),
    )


def _row(item: Item, members: dict[str, tuple[int, int]]) -> dict[str, object]:
    record = item.annotation
    row: dict[str, object] = {
        "key": None if item.status == FORGOTTEN else record.key,
        "status": item.status,
        "run": item.run,
        "image_type": item.image_type,
    }
    if item.status == OK:
        row["image_offset"], row["image_size"] = members[f"{record.key}.{item.image_type}"]
        row["json_offset"], row["json_size"] = members[f"{record.key}.json"]
        row["width"], row["height"] = record.width, record.height
        row["persons"] = sum(not person.ignore for person in record.persons)
        row["ignored"] = sum(person.ignore for person in record.persons)
        row["identities"] = [p.identity for p in record.persons if p.identity]
    return row
