"""LUPerson (Fu et al., CVPR 2021): unlabelled person crops from street videos, one LMDB of JPEG files."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotation import Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import text
from sharding.datasets.base import WHOLE_CROP, FaultySample, Listing, Published, SourceSample
from sharding.datasets.crop_database import (
    EXPECTED,
    NAME_CODING,
    SEPARATOR,
    Crops,
    find_database,
    find_keys,
    read_crops,
    read_record,
)
from sharding.datasets.lazy import LazySamples, each, gather
from sharding.source import Source

ROOTS = ("", "lmdb_300_30", "lup/lmdb_300_30", "LUPerson", "LUPerson/LUPerson")
KEY = re.compile(r"((\d+)_(\d+)_(\d+))_\d+(?:\.jpg)?")
"""country_city_video_image. Other copies use other names: what does not match is a key all the same."""
OFFICIAL_KEY = re.compile(rb"\d{2}_\d{2}_\d{4}_\d{8}")
SPLITS: Mapping[str, tuple[Published, ...]] = {"train": (Published("images", 4_180_243, "S"),)}
SOMEBODY = Person(box=WHOLE_CROP)
"""One record serves all four million crops: nothing is known about any of them."""


class LuPerson:
    """The official release is a list of videos, so copies differ in what could still be downloaded.

    keys.pkl (a list, or a dict with `keys`) says which records are images; without it all records are.
    Some copies are folders of files instead, each named by its key.
    """

    name = "luperson"
    task: Task = "reid"
    licence = "LUPerson: research only; images come from public videos and are not redistributable."
    homepage = "https://github.com/DengpanFu/LUPerson"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        database = find_database(source, ROOTS)
        if database is None:
            return _list_files(source)
        crops = read_crops(source, database, find_keys(source, database))
        missing = (name.decode(NAME_CODING) for name in crops.missing)
        return Listing(
            LazySamples(crops.names, crops.sizes, _Records(crops).sample),
            crops.total,
            excluded=crops.excluded,
            faulty=tuple(FaultySample(sample_key("luperson", "train", n), n) for n in missing),
            found=_count(crops.names),
        )

    def read(self, source: Source, locator: str) -> bytes:
        return read_record(source, locator) if SEPARATOR in locator else source.read(locator)


@dataclass(frozen=True, eq=False)
class _Records:
    crops: Crops

    def sample(self, number: int, name: bytes, size: int) -> SourceSample:
        text = name.decode(NAME_CODING)
        return _sample(text, self.crops.locator(text), size)


@dataclass(frozen=True, eq=False)
class _Files:
    folder: str
    packed: dict[str, str]
    """Path -> locator of those in archives; of others the path is the locator."""

    def sample(self, number: int, name: bytes, size: int) -> SourceSample:
        path = self.folder + name.decode()
        return _sample(name.decode(), self.packed.get(path, path), size)


def _list_files(source: Source) -> Listing:
    """Every .jpg at any depth, named by its path below the folder that holds them all."""
    packed: dict[str, str] = {}

    def files() -> Iterator[tuple[bytes, int]]:
        for path, file in source.scan(suffix=".jpg"):
            if file.locator != path:
                packed[path] = file.locator
            yield path.encode(), file.size

    paths, sizes = gather(files())
    if not len(paths):
        raise UserError(
            f"{source.url} {source.describe()}; expected {EXPECTED}, or a folder of .jpg files named "
            "as 34_01_0341_00001865.jpg."
        )
    order = pc.sort_indices(paths)
    paths, sizes = paths.take(order), sizes[order.to_numpy()]
    folder = _common_folder(paths[0].as_py(), paths[len(paths) - 1].as_py())
    names = pc.binary_slice(paths, len(folder))
    samples = LazySamples(names, sizes, _Files(folder.decode(), packed).sample)
    return Listing(samples, len(samples), found=_count(names))


def _common_folder(first: bytes, last: bytes) -> bytes:
    """Of two paths, with its `/`; of the first and the last of a sorted list: of all of them."""
    folder = first[: first.rfind(b"/") + 1]
    while not last.startswith(folder):
        folder = folder[: folder[:-1].rfind(b"/") + 1]
    return folder


def _sample(name: str, locator: str, size: int) -> SourceSample:
    parsed = KEY.fullmatch(name)
    return SourceSample(
        key=sample_key("luperson", "train", name),
        locator=locator,
        origin=name,
        size_bytes=size,
        persons=(SOMEBODY,),
        extra=dict(zip(("country", "city", "video"), parsed.groups()[1:])) if parsed else {},
    )


def _count(names: pa.LargeBinaryArray) -> dict[str, int]:
    parsed = (KEY.fullmatch(name.decode(NAME_CODING)) for name in each(names))
    return {"images": len(names), "videos": len({found[1] for found in parsed if found})}
