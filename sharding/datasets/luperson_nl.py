"""LUPerson-NL (Fu et al., CVPR 2022): crops from street videos, labelled by a tracker and not by people."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotation import Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import luperson, text
from sharding.datasets.base import WHOLE_CROP, FaultySample, Listing, Published, SourceSample
from sharding.datasets.crop_database import (
    EXPECTED,
    NAME_CODING,
    Crops,
    KeyFile,
    find_database,
    find_keys,
    read_crops,
    read_record,
)
from sharding.datasets.lazy import LazySamples, each
from sharding.source import Source

ROOTS = ("", "lupnl_lmdb", "LUPerson-NL", "lup-nl", "LUPerson_NL")
KEY = re.compile(r"(\d{5})_(\d+)_(\d+)_(\d+)")
"""video_person_frame_object. Other copies may use other names: what does not match is a key all the same."""
SPLITS: Mapping[str, tuple[Published, ...]] = {
    "train": (Published("images", 10_683_716, "S"), Published("identities", 433_997, "S"))
}
NOISY = "noisy"


class LuPersonNl:
    """Another dataset than LUPerson: its keys.pkl is a dict that gives each key a `pid`.

    A pid is what a tracker took for one person, often wrongly: it is the identity, in the namespace
    `noisy` and tagged so. `vids` says again what keys say, and is not read.
    """

    name = "luperson_nl"
    task: Task = "reid"
    licence = (
        "LUPerson-NL: research only; images come from public videos and are not redistributable."
    )
    homepage = "https://github.com/DengpanFu/LUPerson-NL"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        database = find_database(source, ROOTS)
        if database is None:
            raise UserError(f"{source.url} {source.describe()}; expected {EXPECTED}.")
        keys = find_keys(source, database, labelled=True)
        _check(source, keys)
        crops = read_crops(source, database, keys)
        pids = np.empty(0, np.int64) if crops.pids is None else crops.pids
        missing = (name.decode(NAME_CODING) for name in crops.missing)
        return Listing(
            LazySamples(crops.names, crops.sizes, _Records(crops, pids).sample),
            crops.total,
            excluded=crops.excluded,
            faulty=tuple(FaultySample(sample_key("luperson_nl", "train", n), n) for n in missing),
            found={"images": len(crops.names), "identities": len(np.unique(pids))},
        )

    def read(self, source: Source, locator: str) -> bytes:
        return read_record(source, locator)


@dataclass(frozen=True, eq=False)
class _Records:
    crops: Crops
    pids: NDArray[np.int64]

    def sample(self, number: int, name: bytes, size: int) -> SourceSample:
        text = name.decode(NAME_CODING)
        parsed = KEY.fullmatch(text)
        fields = (
            dict(zip(("video", "person", "frame", "object"), parsed.groups())) if parsed else {}
        )
        person = Person(box=WHOLE_CROP, identity=f"{NOISY}:{self.pids[number]}", tags=(NOISY,))
        return SourceSample(
            key=sample_key("luperson_nl", "train", text),
            locator=self.crops.locator(text),
            origin=text,
            size_bytes=size,
            persons=(person,),
            extra=dict(fields),
        )


def _check(source: Source, keys: KeyFile | None) -> None:
    """Raises UserError unless each key has one label, and if this is LUPerson."""
    what = f"{source.url} is not LUPerson-NL"
    if keys is None:
        raise UserError(f"{what}: keys.pkl, which has its labels, is missing. Expected {EXPECTED}.")
    if keys.pids is None or (
        len(keys.names) and luperson.OFFICIAL_KEY.fullmatch(next(each(keys.names)))
    ):
        raise UserError(
            f"{what}: {keys.path} has no `pids`, or keys as LUPerson's, which nobody labelled. Of LUPerson "
            "the name is `luperson`."
        )
    if keys.repeated.any():
        raise UserError(
            f"{keys.path} names {int(keys.repeated.sum())} keys more than once, so that their `pids` are not "
            "known for sure: copy it again."
        )
