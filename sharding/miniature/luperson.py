"""Writes a LUPerson look-alike: `lmdb/{data.mdb,lock.mdb}` of JPEG bytes, and `keys.pkl`, a pickled list.

The look: street videos from all over the world, each with a light of its own, cut loosely by a detector
and compressed hard. Nobody says who is who.
"""

from pathlib import Path

from sharding.miniature.crops import Camera, draw_crop, make_camera, passers_by
from sharding.miniature.database import write_database
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


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    broken = damaged(
        generator(config.seed, "luperson", "damage"), config.luperson_crops, config.corrupt
    )
    values: dict[str, bytes] = {}
    truth = []
    cameras = make_cameras(config, "luperson", LOOK, config.luperson_identities)
    for index, (key, identity, video) in enumerate(_plan(config)):
        data, width, height = draw(config, "luperson", cameras[video], key, identity)
        values[key] = truncated(data) if index in broken else data
        person = TruthPerson((0.0, 0.0, float(width), float(height)))
        truth.append(
            TruthImage("luperson", "train", key, width, height, (person,), index in broken)
        )
    write_database(root / "luperson", values, sorted(values))
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


def make_cameras(
    config: MiniatureConfig, dataset: str, look: Look, identities: int
) -> list[Camera]:
    """One a video."""
    spread = 0.1 + 0.3 * config.difficulty
    return [
        make_camera(config.seed, PLACES[video % len(PLACES)], look, spread, dataset, video)
        for video in range(-(-identities // IDENTITIES_IN_A_VIDEO))
    ]


def draw(
    config: MiniatureConfig, dataset: str, camera: Camera, key: str, identity: int
) -> tuple[bytes, int, int]:
    """JPEG bytes, width and height of a crop."""
    rng = generator(config.seed, dataset, key)
    height = round(float(rng.uniform(130, 220)) * config.scale)
    width = round(height * float(rng.uniform(0.36, 0.55)))
    person = draw_appearance(config.seed, dataset, identity)
    stranger = passers_by(rng, config.seed, dataset, 0.5)
    fill = float(rng.uniform(0.8, 1.0))
    image = draw_crop(rng, camera, person, (width, height), config.difficulty, stranger, fill)
    return jpeg(image, int(rng.integers(55, 80))), width, height
