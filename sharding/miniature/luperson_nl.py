"""Writes a LUPerson-NL look-alike: an LMDB of JPEG bytes, and `keys.pkl`, a dict of keys and their pids.

The look: street videos under a dull sky. A tracker says who is who, and now and then takes one person for
another.
"""

from pathlib import Path

from sharding.miniature.database import write_database
from sharding.miniature.luperson import IDENTITIES_IN_A_VIDEO, draw, make_cameras
from sharding.miniature.scenes import Look
from sharding.miniature.world import MiniatureConfig, TruthImage, TruthPerson, generator

LOOK = Look(gains=(0.92, 1.0, 1.1), saturation=0.7, contrast=0.9, exposure=0.9, blur=0.4, noise=2.0)
MISTAKEN = 0.1
"""Share of crops that show somebody else than their pid says."""


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    people = config.luperson_nl_identities
    cameras = make_cameras(config, "luperson_nl", LOOK, people)
    values: dict[str, bytes] = {}
    pids: dict[str, int] = {}
    truth = []
    for index in range(config.luperson_nl_crops):
        rng = generator(config.seed, "luperson_nl", "plan", index)
        pid = index % people
        video = pid // IDENTITIES_IN_A_VIDEO
        key = f"{video + 1:05d}_{pid:06d}_{25 * int(rng.integers(40_000)):07d}_{index % 7:02d}"
        shown = int(rng.integers(people)) if rng.random() < MISTAKEN else pid
        values[key], width, height = draw(config, "luperson_nl", cameras[video], key, shown)
        pids[key] = pid
        person = TruthPerson((0.0, 0.0, float(width), float(height)), str(pid), tags=("noisy",))
        truth.append(TruthImage("luperson_nl", "train", key, width, height, (person,)))
    keys = sorted(values)
    write_database(
        root / "luperson_nl", values, {"keys": keys, "pids": [pids[key] for key in keys]}
    )
    return truth
