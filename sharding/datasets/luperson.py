"""LUPerson (Fu et al., CVPR 2021): unlabelled person crops from street videos, one LMDB of JPEG files."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lmdb
from pydantic import JsonValue

from pipeline.annotation import Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import folder
from sharding.datasets.base import WHOLE_CROP, FaultySample, Listing, Published, SourceSample
from sharding.datasets.handles import once_per_process
from sharding.datasets.plain_pickle import read_plain

EXPECTED = "lmdb/data.mdb with keys.pkl beside lmdb/, or the lmdb folder itself"
ROOTS = ("", "lmdb_300_30", "lup/lmdb_300_30", "LUPerson")
KEY = re.compile(r"(\d+)_(\d+)_(\d+)_\d+")
"""country_city_video_image. Other copies use other names: what does not match is a key all the same."""
SPLITS: Mapping[str, tuple[Published, ...]] = {"train": (Published("images", 4_180_243, "S"),)}
NAME_CODING = "latin-1"
"""Keys are ASCII. Should a copy's not be, this maps every byte to a character and back."""
SOMEBODY = Person(box=WHOLE_CROP)
"""One record serves all four million crops: nothing is known about any of them."""


class LuPerson:
    """The official release is a list of videos, so copies differ in what could still be downloaded.

    keys.pkl (a list, or a dict with `keys`) says which records are images; without it all records are.
    """

    name = "luperson"
    task: Task = "reid"
    licence = "LUPerson: research only; images come from public videos and are not redistributable."
    homepage = "https://github.com/DengpanFu/LUPerson"
    splits = SPLITS

    def list_samples(self, source: Path, split: str) -> Listing:
        folder.check_split(self, split)
        root = folder.find_root(source, ROOTS, ("lmdb/data.mdb", "data.mdb"), EXPECTED)
        database = f"{root}lmdb" if (source / root / "lmdb/data.mdb").is_file() else root
        beside = (
            source / database / "keys.pkl",
            (source / database).absolute().parent / "keys.pkl",
        )
        key_file = next((path for path in beside if path.is_file()), None)
        environment = _open(source / database)
        names = sorted(set(_read_keys(key_file))) if key_file else None
        samples: list[SourceSample] = []
        faulty: list[FaultySample] = []
        videos: dict[tuple[str, ...], dict[str, JsonValue]] = {}
        for name, size in _sizes(environment, names):
            if size is None:
                text = name.decode(NAME_CODING)
                faulty.append(FaultySample(sample_key("luperson", split, text), text))
            else:
                samples.append(_sample(name, size, split, database, videos))
        records = environment.stat()["entries"]
        unnamed = records - len(samples)
        return Listing(
            samples,
            records + len(faulty),
            excluded={"not named in keys.pkl": unnamed} if unnamed else {},
            faulty=tuple(faulty),
            found={"images": len(samples), "videos": sum(1 for video in videos if video)},
        )

    def read(self, source: Path, locator: str) -> bytes:
        database, _, name = locator.partition(":")
        try:
            with _open(source / database).begin() as transaction:
                value = transaction.get(name.encode(NAME_CODING))
        except lmdb.Error as error:
            raise ValueError(f"record {name} cannot be read: {error}") from error
        if value is None:
            raise FileNotFoundError(f"no record {name} in {source / database}")
        return bytes(value)


@once_per_process
def _open(path: Path) -> lmdb.Environment:
    """Read-only and without a lock file. Opening it twice in a process is forbidden by LMDB.

    Raises UserError if this is no LMDB, or one that ends early: reading past its end would kill us.
    """
    file = path / "data.mdb"
    try:
        environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise UserError(
            f"{file}: cannot be opened as an LMDB ({error}); expected {EXPECTED}."
        ) from error
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < needed:
        environment.close()
        raise UserError(
            f"{file} has {file.stat().st_size} bytes and needs {needed}: copy or unpack it again."
        )
    return environment


def _sizes(
    environment: lmdb.Environment, names: list[bytes] | None
) -> Iterator[tuple[bytes, int | None]]:
    """Each record and the bytes of its value (None: no such record). Touches no image."""
    with environment.begin(buffers=True) as transaction:
        if names is None:
            yield from ((bytes(key), len(value)) for key, value in transaction.cursor())
            return
        for name in names:
            possible = 0 < len(name) <= environment.max_key_size()
            found = transaction.get(name) if possible else None
            yield name, None if found is None else len(found)


def _read_keys(path: Path) -> list[bytes]:
    try:
        content = read_plain(path)
    except ValueError as error:
        raise UserError(
            f"{path}: expected a list of keys, or a dict with `keys`, and nothing that would have to be "
            f"executed; found: {error}. Without the file, all records of the LMDB are taken."
        ) from error
    keys: Any = content.get("keys") if isinstance(content, dict) else content
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str | bytes) for key in keys):
        raise UserError(
            f"{path}: expected a list of keys (str or bytes), or a dict with such a list as `keys`. "
            "Without the file, all records of the LMDB are taken."
        )
    return [key.encode() if isinstance(key, str) else key for key in keys]


def _sample(
    name: bytes,
    size: int,
    split: str,
    database: str,
    videos: dict[tuple[str, ...], dict[str, JsonValue]],
) -> SourceSample:
    text = name.decode(NAME_CODING)
    parsed = KEY.fullmatch(text)
    fields = parsed.groups() if parsed else ()
    extra = videos.setdefault(fields, dict(zip(("country", "city", "video"), fields)))
    return SourceSample(
        key=sample_key("luperson", split, text),
        locator=f"{database}:{text}",
        origin=text,
        size_bytes=size,
        persons=(SOMEBODY,),
        extra=extra,
    )
