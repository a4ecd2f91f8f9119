"""Damage to releases, drawn by a seeded generator: bytes, JSON, images, names, databases, archives."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import lmdb
from packing import cut, files_of, tarred, unpacked, zipped
from test_hostile_samples import ANY, BAD, GOOD

IMAGES = [*GOOD.values(), *ANY.values(), *(data for data, _ in BAD.values())]
TOKENS = (
    b"", b"\0" * 64, b"\xff\xd9", b"\xff\xfe\x00", b'"', b"{", b"}", b"[" * 3000, b"]", b",", b"\n", b" ",
    b"-1", b"0", b"9" * 400, b"1e999", b"NaN", b"null", b"\\ud800", b"../../", b"\xc3\x28", b"\x80\x04.",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 7, 1e308, -1e308, 10**400, float("nan"), float("inf"), "", "x" * 300, "../../up",
    "two\nlines", "\ud800", "12", [], {}, [1, 2, 3, 4], [[[]]], {"identity": "frame"}, {"children": [7]},
)  # fmt: skip
NAMES = ("two\nlines", "n" * 200, "grüße", "a b", "..x", "x::y", "what?", "caf\udce9", "A" * 8)


def damage_bytes(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 4, 64, 1000, len(data))))
    match rng.randrange(7):
        case 0 | 1 if data:
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 3, 20))):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 2:
            return data[:at] + rng.randbytes(end - at) + data[end:]
        case 3:
            return data[:at] + data[end:]
        case 4:
            return data[:end] + data[at:]
        case 5:
            return data[:at]
        case _:
            return data[:at] + rng.choice(TOKENS) + data[at:]


def damage_json(rng: Random, data: bytes) -> bytes:
    """One value, in one line if there is an object in each."""
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    number = rng.randrange(len(lines))
    try:
        tree = json.loads(lines[number])
    except ValueError:
        return damage_bytes(rng, data)
    places = list(_places(tree))
    if places:
        container, place = rng.choice(places)
        match rng.randrange(4):
            case 0:
                del container[place]
            case 1:
                other, inside = rng.choice(places)
                container[place] = other[inside] if inside in _keys(other) else None
            case _:
                container[place] = rng.choice(VALUES)
    try:
        lines[number] = json.dumps(tree).encode()
    except ValueError:  # now it contains itself
        return damage_bytes(rng, data)
    return b"\n".join(lines)


def _places(tree: Any) -> Any:
    for key in _keys(tree):
        yield tree, key
        yield from _places(tree[key])


def _keys(tree: Any) -> list[Any]:
    return (
        list(tree)
        if isinstance(tree, dict)
        else list(range(len(tree) if isinstance(tree, list) else 0))
    )


def damage(rng: Random, name: str, data: bytes) -> bytes:
    """As fits the kind of file that `name` is."""
    if name.endswith((".jpg", ".png")) and rng.random() < 0.4:
        return rng.choice(IMAGES)
    if name.endswith((".json", ".odgt")) and rng.random() < 0.7:
        return damage_json(rng, data)
    return damage_bytes(rng, data)


def copy_release(release: Path, target: Path) -> None:
    """Its files are links to those of the release: to be replaced, never written into."""
    shutil.copytree(release, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def damage_folder(rng: Random, root: Path) -> int:
    """Damages files of the release in place; returns how many samples and other files it touched."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    others = [path for path in files if path.suffix not in (".jpg", ".png")]
    images = [path for path in files if path.suffix in (".jpg", ".png")]
    touched = 0
    for path in rng.sample(images, len(images) * rng.randrange(5) // 4):
        touched += _damage_file(rng, path)
    if others and (not touched or rng.random() < 0.2):
        # Many small label files are samples each; one list is all there is.
        for path in rng.sample(others, min(len(others), rng.choice((1, 1, 2, 8)))):
            touched += _damage_file(rng, path)
    return touched


def _damage_file(rng: Random, path: Path) -> int:
    match rng.randrange(20):
        case 0:
            path.unlink()
        case 1:
            path.unlink()
            path.mkdir()
        case 2:
            path.rename(path.with_name(rng.choice(NAMES) + path.suffix))
        case 3:
            path.with_name(rng.choice(NAMES) + path.suffix).write_bytes(path.read_bytes())
        case _ if path.name == "data.mdb" and rng.random() < 0.7:
            return _damage_records(rng, path)
        case _:
            replace(path, damage(rng, path.name, path.read_bytes()))
    return 1


def _damage_records(rng: Random, path: Path) -> int:
    """Images in an LMDB, which stays sound."""
    replace(path, path.read_bytes())
    touched = 0
    with (
        lmdb.open(str(path.parent), map_size=1 << 26, lock=False) as database,
        database.begin(write=True) as transaction,
    ):
        for key, value in list(transaction.cursor()):
            if rng.random() < 0.5:
                transaction.put(key, damage(rng, "x.jpg", value))
                touched += 1
    return touched


def pack(rng: Random, root: Path, target: Path) -> int:
    """The folder as an archive in `target`, perhaps damaged itself; returns how many files that touched."""
    kind = rng.choice(tuple(ARCHIVES))
    try:
        data = ARCHIVES[kind](files_of(root))
    except UnicodeEncodeError:  # zips cannot hold every name
        kind, data = "all.tar", tarred(files_of(root))
    touched = 0
    if rng.random() < 0.6:
        data, touched = damage_bytes(rng, data), 1
    if rng.random() < 0.2:
        unpacked(target, cut(kind, data, ("aa", "ab", "ac")))
    else:
        unpacked(target, {kind: data})
    return touched


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "all.zip": zipped,
    "all.tar": tarred,
    "all.tar.gz": lambda files: gzip.compress(tarred(files), 1),
}
