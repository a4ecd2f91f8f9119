"""What the LUPerson look-alikes lie in: an LMDB and a pickled list of its keys, spelled out to the byte."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmdb

LOCK_BYTES = 8192


def write_database(folder: Path, values: Mapping[str, bytes], keys: Any) -> None:
    """`lmdb/{data.mdb,lock.mdb}` and beside it keys.pkl, which holds `keys`."""
    (folder / "lmdb").mkdir(parents=True, exist_ok=True)
    size = 2 * sum(map(len, values.values())) + (16 << 20)
    # One transaction in key order, so that equal values make an equal file.
    with (
        lmdb.open(str(folder / "lmdb"), map_size=size, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key in sorted(values):
            transaction.put(key.encode("ascii"), values[key], append=True)
    # LMDB's own would hold the writer's process number; it makes a fresh one out of any other content.
    (folder / "lmdb" / "lock.mdb").write_bytes(bytes(LOCK_BYTES))
    (folder / "keys.pkl").write_bytes(b"\x80\x02" + _pickled(keys) + b".")


def _pickled(value: Any) -> bytes:
    """Protocol 2, of strings, integers and lists and dicts of them: nothing in this product unpickles."""
    match value:
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(map(_pickled, value)) + b"e"
    return b"}(" + b"".join(_pickled(key) + _pickled(item) for key, item in value.items()) + b"u"
