"""Writes a LUPerson look-alike: `lmdb/{data.mdb,lock.mdb}` of JPEG bytes, and `keys.pkl`, a pickled list.

The look: street videos from all over the world, each with a light of its own, cut loosely by a detector
and compressed hard. Nobody says who is who.
"""

from pathlib import Path

import lmdb

from sharding.miniature.crops import Camera, draw_crop, make_camera, passers_by
from sharding.miniature.encode import damaged, jpeg, truncated
from sharding.miniature.scenes import Look
from sharding.miniature.world import (
    MiniatureConfig,
    TruthImage,
    TruthPerson,
    draw_appearance,
    generator,
)

LOOK = Look(
    gains=(1.1, 1.0, 0.86), saturation=1.3, contrast=1.12, exposure=1.05, blur=0.3, noise=1.0
)
PLACES = ("street", "market", "square", "station")
IDENTITIES_IN_A_VIDEO = 7
LOCK_BYTES = 8192


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    folder = root / "luperson"
    (folder / "lmdb").mkdir(parents=True, exist_ok=True)
    broken = damaged(
        generator(config.seed, "luperson", "damage"), config.luperson_crops, config.corrupt
    )
    values: dict[str, bytes] = {}
    truth = []
    cameras = _cameras(config)
    for index, (key, identity, video) in enumerate(_plan(config)):
        data, width, height = _draw(config, cameras[video], key, identity)
        values[key] = truncated(data) if index in broken else data
        person = TruthPerson((0.0, 0.0, float(width), float(height)))
        truth.append(
            TruthImage("luperson", "train", key, width, height, (person,), index in broken)
        )
    _write_lmdb(folder / "lmdb", values)
    (folder / "keys.pkl").write_bytes(pickled_list(sorted(values)))
    return truth


def _plan(config: MiniatureConfig) -> list[tuple[str, int, int]]:
    """(key, identity, video) of every crop; a key is country, city, video and image."""
    plan = []
    for index in range(config.luperson_crops):
        identity = index % config.luperson_identities
        video = identity // IDENTITIES_IN_A_VIDEO
        country, city, number = generator(config.seed, "luperson", "video", video).integers(
            (1, 0, 0), (60, 9, 30)
        )
        plan.append(
            (f"{country:02d}_{city:02d}_{30 * video + number:04d}_{index:08d}", identity, video)
        )
    return plan


def _cameras(config: MiniatureConfig) -> list[Camera]:
    """One a video."""
    spread = 0.1 + 0.3 * config.difficulty
    return [
        make_camera(config.seed, PLACES[video % len(PLACES)], LOOK, spread, "luperson", video)
        for video in range(-(-config.luperson_identities // IDENTITIES_IN_A_VIDEO))
    ]


def _draw(
    config: MiniatureConfig, camera: Camera, key: str, identity: int
) -> tuple[bytes, int, int]:
    """JPEG bytes, width and height."""
    rng = generator(config.seed, "luperson", key)
    height = round(float(rng.uniform(130, 220)) * config.scale)
    width = round(height * float(rng.uniform(0.36, 0.55)))
    person = draw_appearance(config.seed, "luperson", identity)
    stranger = passers_by(rng, config.seed, "luperson", 0.5)
    fill = float(rng.uniform(0.8, 1.0))
    image = draw_crop(rng, camera, person, (width, height), config.difficulty, stranger, fill)
    return jpeg(image, int(rng.integers(55, 80))), width, height


def _write_lmdb(folder: Path, values: dict[str, bytes]) -> None:
    """One transaction in key order, so that equal values make an equal file."""
    size = 2 * sum(map(len, values.values())) + (16 << 20)
    with (
        lmdb.open(str(folder), map_size=size, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key in sorted(values):
            transaction.put(key.encode("ascii"), values[key], append=True)
    # LMDB's own would hold the writer's process number; it makes a fresh one out of any other content.
    (folder / "lock.mdb").write_bytes(bytes(LOCK_BYTES))


def pickled_list(items: list[str]) -> bytes:
    """The pickle (protocol 2) of a list of strings, spelled out: nothing in this product unpickles.

    PROTO 2, EMPTY_LIST, MARK, then BINUNICODE + length + UTF-8 for each string, APPENDS, STOP.
    """
    texts = [item.encode() for item in items]
    body = b"".join(b"X" + len(text).to_bytes(4, "little") + text for text in texts)
    return b"\x80\x02](" + body + b"e."
