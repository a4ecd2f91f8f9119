"""What LUPerson and LUPerson-NL share: an LMDB of JPEG files, and keys.pkl that says which are images."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.stores.store import Location
from sharding.datasets.handles import once_per_process
from sharding.datasets.lazy import Sizes, each, gather, pieces
from sharding.datasets.lmdb_pages import LmdbPages
from sharding.datasets.plain_pickle import read_plain
from sharding.source import Source

EXPECTED = "lmdb/data.mdb with keys.pkl beside lmdb/, or the lmdb folder itself"
DATA, KEYS = "data.mdb", "keys.pkl"
FOLDERS = ("", "lmdb/")
NAME_CODING = "latin-1"
"""Keys are ASCII. Should a copy's not be, this maps every byte to a character and back."""
REMOTE_READS = 16
"""At a time, of a scan over a store: leaves lie far apart between the images."""
LAST = (0, None)
SEPARATOR = "\n"
"""Between the database and the key in a locator."""


class KeyFile(NamedTuple):
    """keys.pkl, by name."""

    path: str
    """For messages."""
    names: pa.LargeBinaryArray
    repeated: NDArray[np.bool_]
    """Which of them are the same as the one before."""
    pids: NDArray[np.int64] | None
    """The label of each, where the file has them and they were asked for."""


@dataclass(frozen=True, eq=False)
class Crops:
    """The records that are images, in the order of keys."""

    database: str
    names: pa.LargeBinaryArray
    sizes: Sizes
    pids: NDArray[np.int64] | None
    """The label of each, where keys.pkl has them and they were asked for."""
    records: int
    """In the database, images or not."""
    missing: list[bytes]
    """Keys that keys.pkl names and the database lacks, each once."""

    @property
    def excluded(self) -> dict[str, int]:
        unnamed = self.records - len(self.names)
        return {"not named in keys.pkl": unnamed} if unnamed else {}

    @property
    def total(self) -> int:
        return self.records + len(self.missing)

    def locator(self, name: str) -> str:
        return f"{self.database}{SEPARATOR}{name}"


def find_database(source: Source, roots: Iterable[str]) -> str | None:
    """The path of data.mdb, in or below one of the folders `roots` (`""`: the source itself)."""
    paths = (f"{f'{root}/' if root else ''}{folder}{DATA}" for root in roots for folder in FOLDERS)
    return next((path for path in paths if source.find(path)), None)


def find_keys(source: Source, database: str, labelled: bool = False) -> KeyFile | None:
    """keys.pkl beside data.mdb or beside its folder. Raises UserError if it is anything but keys."""
    folder, _, _ = database.rpartition("/")
    above, _, _ = folder.rpartition("/")
    for path in (f"{folder}/{KEYS}".lstrip("/"), f"{above}/{KEYS}".lstrip("/")):
        if found := source.find(path):
            return _read_keys(source.at(path), partial(source.read, found.locator), labelled)
    parent = source.url.rstrip("/").rpartition("/")[0]
    if not folder and parent and not parent.endswith("/"):  # the source is the lmdb folder itself
        beside = Location(f"{parent}/{KEYS}")
        if beside.is_file():
            return _read_keys(beside.url, beside.read, labelled)
    return None


def read_crops(source: Source, database: str, keys: KeyFile | None) -> Crops:
    """Raises UserError if the database is damaged or none."""
    file = source.find(database)
    assert file is not None
    named = bytearray(len(keys.names) if keys else 0)
    try:
        pages = open_database(source, file.locator)
        items = pages.items() if keys is None else _named(pages.items(), keys.names, named)
        names, sizes = gather(items)
    except ValueError as error:
        raise UserError(
            f"{source.at(database)} cannot be read as an LMDB: {error}. Copy or unpack it again; expected "
            f"{EXPECTED}."
        ) from None
    if keys is None:
        return Crops(file.locator, names, sizes, None, pages.entries, [])
    found = np.frombuffer(named, bool)
    missing = keys.names.filter(pa.array(~found & ~keys.repeated)).to_pylist()
    pids = None if keys.pids is None else keys.pids[found]
    return Crops(file.locator, names, sizes, pids, pages.entries, missing)


def _named(
    items: Iterator[tuple[bytes, int]], names: pa.LargeBinaryArray, named: bytearray
) -> Iterator[tuple[bytes, int]]:
    """Those of `items` that are among `names`, where they are marked. Both are in order."""
    listed = enumerate(each(names))
    place, name = next(listed, LAST)
    for item in items:
        while name is not None and name < item[0]:
            place, name = next(listed, LAST)
        if name == item[0]:
            named[place] = True
            yield item


def read_record(source: Source, locator: str) -> bytes:
    """The value that `Crops.locator` names. Raises FileNotFoundError if there is none."""
    database, _, name = locator.partition(SEPARATOR)
    value = open_database(source, database).get(name.encode(NAME_CODING))
    if value is None:
        raise FileNotFoundError(f"no record {name} in {DATA}")
    return value


@once_per_process
def open_database(source: Source, locator: str) -> LmdbPages:
    return LmdbPages(source.ranges(locator), 1 if source.is_local else REMOTE_READS)


def _read_keys(path: str, read: Callable[[], bytes], labelled: bool) -> KeyFile:
    names, pids = _plain_keys(path, read, labelled)
    names = pa.concat_arrays(names)
    order = pc.sort_indices(names)
    names = names.take(order)
    repeated = np.zeros(len(names), bool)
    repeated[1:] = pc.equal(names[1:], names[:-1])
    return KeyFile(path, names, repeated, None if pids is None else pids[order.to_numpy()])


def _plain_keys(
    path: str, read: Callable[[], bytes], labelled: bool
) -> tuple[list[pa.LargeBinaryArray], NDArray[np.int64] | None]:
    """Keys as listed, in pieces. Millions of objects come and go with this call."""
    without = "Without the file, all records of the LMDB are taken."
    try:
        content = read_plain(read())
    except ValueError as error:
        raise UserError(
            f"{path}: expected a list of keys, or a dict with `keys`, and nothing that would have to be "
            f"executed; found: {error}. {without}"
        ) from None
    keys: Any = content.get("keys") if isinstance(content, dict) else content
    try:
        if not isinstance(keys, list | tuple):
            raise TypeError
        names = pieces(keys)
    except (TypeError, pa.ArrowInvalid):
        raise UserError(
            f"{path}: expected a list of keys (str or bytes), or a dict with such a list as `keys`. {without}"
        ) from None
    if not labelled or not isinstance(content, dict) or "pids" not in content:
        return names, None
    pids = _labels(content["pids"])
    if pids is None or len(pids) != len(keys):
        raise UserError(
            f"{path}: expected under `pids` a number, from 0, for each of its {len(keys)} keys."
        )
    return names, pids


def _labels(pids: Any) -> NDArray[np.int64] | None:
    """None unless all of them are numbers from 0."""
    try:
        labels = pa.array(pids)
    except (TypeError, OverflowError, pa.ArrowException):
        return None
    if (
        not pa.types.is_signed_integer(labels.type)
        or labels.null_count
        or pc.min(labels).as_py() < 0
    ):
        return None
    return labels.to_numpy().astype(np.int64)
