"""MSMT17 (Wei et al., CVPR 2018): labelled re-ID crops of 15 cameras, V1 and the face-blurred V2."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pipeline.annotation import Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import text
from sharding.datasets.base import (
    WHOLE_CROP,
    FaultySample,
    Listing,
    Published,
    SourceSample,
    count_identities,
)
from sharding.source import Source, SourceFile, find_root

EXPECTED = (
    "the folder MSMT17_V1/ (or MSMT17_V2/) with train/ and test/ (mask_train_v2/ and mask_test_v2/) "
    "beside list_train.txt, list_val.txt, list_query.txt and list_gallery.txt"
)
LISTS_ADVICE = (
    "Many copies of MSMT17 lack the lists and they cannot be made up: take them from the release."
)
HALVES = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
LISTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "train_val": ("train", ("train", "val")),
    "train": ("train", ("train",)),
    "val": ("train", ("val",)),
    "query": ("test", ("query",)),
    "gallery": ("test", ("gallery",)),
}
"""Split -> the half whose folder and identities it uses, and its lists."""
SPLITS: Mapping[str, tuple[Published, ...]] = {
    split: (Published("images", images, "V"), Published("identities", identities, "V"))
    for split, images, identities in (
        ("train_val", 32_621, 1_041),
        ("train", 30_248, 1_041),
        ("val", 2_373, 1_041),
        ("query", 11_659, 3_060),
        ("gallery", 82_161, 3_060),
    )
}


class _Entry(NamedTuple):
    list_name: str
    path: str
    """Below the half's image folder."""
    identity: int


class Msmt17:
    """`train_val` is the 32,621 images that papers train on; list_train alone has 30,248.

    The halves number their people from 0 each, and they are different people: the half is the namespace.
    """

    name = "msmt17"
    task: Task = "reid"
    licence = (
        "MSMT17: academic research only, not redistributable, under the signed release agreement."
    )
    homepage = "https://www.pkuvmc.com/dataset.html"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        half, lists = LISTS[split]
        markers = tuple(name for names in HALVES.values() for name in names)
        roots = ("", "MSMT17_V1", "MSMT17_V2", "MSMT17")
        root = find_root(source, roots, markers, EXPECTED)
        folder = next((n for n in HALVES[half] if source.has(f"{root}{n}")), None)
        if folder is None:
            raise UserError(
                f"{source.at(root + half)} is missing ({source.at(root)} {source.describe(root)}); "
                f"expected {EXPECTED}."
            )
        entries = [entry for name in lists for entry in _read_list(source, root, name)]
        prefix = f"{root}{folder}/"
        images = {
            path.removeprefix(prefix): file for path, file in source.files(prefix, ".jpg").items()
        }
        return _list(entries, images, split, half)

    def read(self, source: Source, locator: str) -> bytes:
        return source.read(locator)


def _read_list(source: Source, root: str, name: str) -> Iterator[_Entry]:
    """Raises UserError naming the list, or its file and line."""
    path = source.at(f"{root}list_{name}.txt")
    for number, line in text.text_lines(source, f"{root}list_{name}.txt", LISTS_ADVICE):
        fields = line.rsplit(maxsplit=1)
        if len(fields) != 2 or not re.fullmatch(r"\d{1,9}", fields[1]):
            raise UserError(
                f"{path}, line {number}: expected an image path, a blank and an identity, found {line!r}."
            )
        tokens = _tokens(fields[0])
        if len(tokens) < 6 or not tokens[2].isdecimal():
            raise UserError(
                f"{path}, line {number}: {fields[0]!r} is not named as MSMT17 names its images "
                "(0000/0000_045_12_0303morning_0006_2.jpg)."
            )
        yield _Entry(name, fields[0], int(fields[1]))


def _tokens(path: str) -> list[str]:
    """Identity, index, camera, date, track, number and often `ex`: to be counted from the left."""
    return path.rsplit("/", 1)[-1].removesuffix(".jpg").split("_")


def _list(entries: list[_Entry], images: dict[str, SourceFile], split: str, half: str) -> Listing:
    samples: list[SourceSample] = []
    faulty: list[FaultySample] = []
    seen: set[str] = set()
    repeated = 0
    for entry in entries:
        if entry.path in seen:
            repeated += 1
        elif entry.path in images:
            samples.append(_sample(entry, images[entry.path], split, half))
        else:
            faulty.append(FaultySample(_key(split, entry), f"{half}/{entry.path}"))
        seen.add(entry.path)
    return Listing(
        samples,
        len(entries),
        excluded={"listed twice": repeated} if repeated else {},
        faulty=tuple(faulty),
        found={"images": len(samples), "identities": count_identities(samples)},
    )


def _key(split: str, entry: _Entry) -> str:
    return sample_key("msmt17", split, entry.path)


def _sample(entry: _Entry, file: SourceFile, split: str, half: str) -> SourceSample:
    _, index, camera, date, track, number, *suffixes = _tokens(entry.path)
    person = Person(
        box=WHOLE_CROP,
        identity=f"{half}:{entry.identity:04d}",
        camera=camera,
        tags=tuple(suffixes),
        extra={"date": date, "index": index, "track": track, "number": number},
    )
    return SourceSample(
        key=_key(split, entry),
        locator=file.locator,
        origin=f"{half}/{entry.path}",
        size_bytes=file.size,
        persons=(person,),
        extra={"list": entry.list_name},
    )
