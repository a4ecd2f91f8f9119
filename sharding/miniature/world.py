"""What exists before anything is drawn: settings, people, poses, and the truth that tests compare with.

Every random draw comes from a generator keyed by what it is for (`generator(seed, "msmt17", 12)`), so
a person looks the same whoever asks, and one more image changes no other.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from pipeline.config import Config

Colour = tuple[float, float, float]
"""RGB in 0..255."""
Box = tuple[float, float, float, float]
"""xyxy in pixels, half-open."""

DATASETS = (
    *("crowdhuman", "ecp", "msmt17", "cuhk03", "luperson", "luperson_nl"),
    *("prw", "cuhk_sysu", "posetrack21"),
)


class MiniatureConfig(Config):
    seed: int = 0
    """Another seed is another world: other people, other streets."""
    datasets: tuple[str, ...] = DATASETS
    """Which releases to write."""
    scale: float = Field(default=1.0, ge=0.5, le=1.5)
    """Multiplies the width and height of all images."""
    difficulty: float = Field(default=0.5, ge=0.0, le=1.0)
    """How much light, colour cast, occlusion and look-alike clothes hide who is who."""
    corrupt: int = Field(default=1, ge=0)
    """Truncated images in each of CrowdHuman train, ECP day train, MSMT17 train and LUPerson."""
    crowdhuman_train: int = Field(default=120, ge=1)
    """Scenes in CrowdHuman's training split."""
    crowdhuman_val: int = Field(default=16, ge=1)
    """Scenes in CrowdHuman's validation split."""
    ecp_day_train: int = Field(default=100, ge=1)
    """ECP frames by day for training that show people."""
    ecp_day_val: int = Field(default=12, ge=1)
    """ECP frames by day for validation."""
    ecp_night_train: int = Field(default=12, ge=1)
    """ECP frames by night for training."""
    ecp_night_val: int = Field(default=6, ge=1)
    """ECP frames by night for validation."""
    ecp_empty: int = Field(default=8, ge=0)
    """Further ECP frames by day for training, without people."""
    msmt17_train_identities: int = Field(default=60, ge=1)
    """People in list_train and list_val of MSMT17."""
    msmt17_test_identities: int = Field(default=24, ge=1)
    """Other people, in list_query and list_gallery of MSMT17."""
    cuhk03_train_identities: int = Field(default=40, ge=1)
    """People in the training part of CUHK03's new protocol."""
    cuhk03_test_identities: int = Field(default=16, ge=1)
    """People in the query and gallery part of CUHK03's new protocol."""
    cuhk03_folders: bool = False
    """Write the folders of CUHK03-NP in place of the .mat files."""
    crops_per_identity: int = Field(default=8, ge=4, le=10)
    """Crops of each person in MSMT17, and about as many in each of CUHK03's two variants."""
    luperson_crops: int = Field(default=400, ge=1)
    """Crops in LUPerson."""
    luperson_identities: int = Field(default=160, ge=1)
    """People in LUPerson, which does not say who is who."""
    luperson_nl_crops: int = Field(default=100, ge=1)
    """Crops in LUPerson-NL."""
    luperson_nl_identities: int = Field(default=24, ge=1)
    """People in LUPerson-NL, as its tracker counts them."""
    prw_train: int = Field(default=60, ge=1)
    """Frames in PRW's training split."""
    prw_test: int = Field(default=60, ge=2)
    """Frames in PRW's test split."""
    prw_train_identities: int = Field(default=24, ge=1, le=450)
    """People with an id in PRW's training split, at most one a frame; some come by in the test split too."""
    prw_test_identities: int = Field(default=20, ge=1, le=450)
    """Other people, whom PRW's queries ask for; at most one a frame."""
    cuhk_sysu_train: int = Field(default=60, ge=2)
    """Images in CUHK-SYSU's training split."""
    cuhk_sysu_test: int = Field(default=60, ge=3)
    """Images in CUHK-SYSU's pool, which its galleries are taken from."""
    cuhk_sysu_train_identities: int = Field(default=24, ge=1)
    """People in Train.mat of CUHK-SYSU, at most one an image."""
    cuhk_sysu_test_identities: int = Field(default=20, ge=1)
    """Other people, each of whom a query of CUHK-SYSU asks for; at most one an image."""
    posetrack21_train: int = Field(default=64, ge=1)
    """Frames in PoseTrack21's training split, labelled or not."""
    posetrack21_val: int = Field(default=48, ge=2)
    """Frames in PoseTrack21's validation split."""
    posetrack21_train_identities: int = Field(default=20, ge=1, le=7500)
    """People in PoseTrack21's training split."""
    posetrack21_val_identities: int = Field(default=16, ge=1, le=1600)
    """People in its validation split, one of them from training."""


@dataclass(frozen=True)
class TruthPerson:
    """A person, or region of people, as drawn and annotated."""

    box: Box
    """Of the full body and not clipped; the whole crop in re-ID sets; degenerate where written so."""
    identity: str | None = None
    """As the release writes it: MSMT17's folder (`0012`), CUHK03's label (`7`), CUHK-SYSU's `p00012`."""
    kind: str = "person"
    """The release's own class: `person`, `mask`, `pedestrian`, `rider`, `co-rider` ..."""
    ignore: bool = False
    """Neither positive nor negative for a pedestrian detector."""
    camera: str | None = None
    """As the release writes it: MSMT17 `07`, CUHK03 `2` (the view), PRW `6`."""
    visible_box: Box | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TruthImage:
    """One image of a release and everyone in it. Vehicles are not listed."""

    dataset: str
    split: str
    """`train`, `val`, `test`; ECP `day_train` ...; MSMT17 its list; CUHK03 `labeled_train` ..."""
    name: str
    """Path below the release's folder, LMDB key, or CUHK03 file name."""
    width: int
    height: int
    persons: tuple[TruthPerson, ...] = ()
    corrupt: bool = False


def generator(seed: int, *names: object) -> np.random.Generator:
    """Random numbers that depend on the seed and on what they are for, and on nothing else."""
    digest = hashlib.sha256(repr((seed, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


@dataclass(frozen=True)
class Garment:
    colour: Colour
    accent: Colour
    pattern: str = "plain"
    """plain | hoops | bars | checks | dots | block | gradient"""
    period: float = 0.05
    """Of the pattern, in body heights."""


@dataclass(frozen=True)
class Appearance:
    """What makes a person recognisable. Lengths are in body heights, from the crown down."""

    upper: Garment
    lower: Garment
    inner: Colour | None
    """Shirt under an open jacket."""
    logo: Colour | None
    sleeve: float
    """Covered share of the arm."""
    hem: float
    """Where the upper garment ends."""
    legwear: str
    """trousers | shorts | skirt"""
    cuff: float
    """Covered share of the leg; of a skirt, its length over the leg's."""
    skin: Colour
    hair: Colour
    hair_style: str
    """short | long | bun | bald | cap | hood"""
    headwear: Colour
    shoes: Colour
    bag: str
    """none | backpack | shoulder | hand"""
    bag_colour: Colour
    build: float
    """Width over the average person's."""
    stature: float
    """Height over the average person's."""
    grain: int
    """Which piece of the cloth texture this person wears."""


CLOTHES: dict[str, Colour] = {
    "black": (34, 34, 38), "charcoal": (66, 68, 74), "grey": (128, 130, 134), "white": (226, 226, 222),
    "navy": (36, 46, 84), "blue": (52, 92, 168), "sky": (132, 176, 216), "red": (178, 40, 46),
    "wine": (104, 30, 48), "pink": (220, 142, 162), "green": (48, 112, 70), "olive": (98, 100, 60),
    "lime": (148, 186, 72), "yellow": (226, 190, 62), "orange": (216, 116, 44), "beige": (196, 176, 142),
    "brown": (104, 74, 52), "purple": (104, 66, 138), "teal": (40, 128, 132),
}  # fmt: skip
UPPER_ODDS = {
    "black": 6, "charcoal": 3, "grey": 4, "white": 5, "navy": 4, "blue": 3, "sky": 2, "red": 3, "wine": 2,
    "pink": 2, "green": 2, "olive": 2, "lime": 1, "yellow": 2, "orange": 1, "beige": 3, "brown": 2,
    "purple": 1, "teal": 2,
}  # fmt: skip
LOWER_ODDS = {
    "black": 6, "charcoal": 3, "grey": 2, "navy": 4, "blue": 4, "beige": 3, "brown": 2, "olive": 1,
    "white": 1, "wine": 1,
}  # fmt: skip
SKINS: tuple[Colour, ...] = (
    (236, 196, 168),
    (218, 172, 138),
    (190, 138, 104),
    (142, 96, 68),
    (96, 64, 48),
)
HAIRS: tuple[Colour, ...] = (
    (28, 24, 24),
    (52, 38, 30),
    (92, 62, 40),
    (158, 122, 74),
    (148, 144, 142),
)
PATTERNS = ("plain", "plain", "plain", "hoops", "bars", "checks", "dots", "block", "gradient")


def _cloth_colour(rng: np.random.Generator, odds: dict[str, int]) -> Colour:
    weights = np.array(list(odds.values()), float)
    name = rng.choice(list(odds), p=weights / weights.sum())
    return _vary(rng, CLOTHES[str(name)], 10)


def _vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    r, g, b = np.clip(np.array(colour) + rng.normal(0, spread, 3), 8, 246)
    return (float(r), float(g), float(b))


def draw_appearance(seed: int, *names: object) -> Appearance:
    """The look of the person called `names`."""
    rng = generator(seed, "appearance", *names)
    upper = Garment(
        colour=_cloth_colour(rng, UPPER_ODDS),
        accent=_cloth_colour(rng, UPPER_ODDS),
        pattern=str(rng.choice(PATTERNS)),
        period=float(rng.uniform(0.035, 0.08)),
    )
    lower = Garment(
        colour=_cloth_colour(rng, LOWER_ODDS),
        accent=_cloth_colour(rng, UPPER_ODDS),
        pattern="checks" if rng.random() < 0.08 else "plain",
        period=0.05,
    )
    legwear = str(rng.choice(["trousers", "trousers", "trousers", "shorts", "skirt"]))
    cuff = {"trousers": 1.0, "shorts": rng.uniform(0.35, 0.5), "skirt": rng.uniform(0.35, 0.75)}
    return Appearance(
        upper=upper,
        lower=lower,
        inner=_cloth_colour(rng, UPPER_ODDS) if rng.random() < 0.35 else None,
        logo=_cloth_colour(rng, UPPER_ODDS) if rng.random() < 0.4 else None,
        sleeve=float(rng.choice([0.42, 1.0, 1.0])),
        hem=float(rng.choice([0.5, 0.52, 0.54, 0.66], p=[0.3, 0.3, 0.2, 0.2])),
        legwear=legwear,
        cuff=float(cuff[legwear]),
        skin=_vary(rng, SKINS[rng.integers(len(SKINS))], 6),
        hair=_vary(rng, HAIRS[rng.integers(len(HAIRS))], 6),
        hair_style=str(
            rng.choice(["short", "short", "long", "long", "bun", "bald", "cap", "hood"])
        ),
        headwear=_cloth_colour(rng, UPPER_ODDS),
        shoes=_cloth_colour(rng, UPPER_ODDS),
        bag=str(rng.choice(["none", "none", "backpack", "shoulder", "hand"])),
        bag_colour=_cloth_colour(rng, UPPER_ODDS),
        build=float(rng.uniform(0.86, 1.24)),
        stature=float(rng.uniform(0.9, 1.08)),
        grain=int(rng.integers(1 << 16)),
    )


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians; pairs are (left, right). Positive swings the limb forward."""

    yaw: float
    """0 faces the camera, pi shows the back."""
    thighs: tuple[float, float] = (0.0, 0.0)
    knees: tuple[float, float] = (0.0, 0.0)
    arms: tuple[float, float] = (0.0, 0.0)
    elbows: tuple[float, float] = (0.15, 0.15)
    spread: float = 0.12
    """Of the arms, sideways."""
    lean: float = 0.0
    """Of the trunk, forward."""
    pitch: float = 0.0
    """How far the camera looks down."""

    @property
    def seated(self) -> bool:
        return min(self.thighs) > 0.8


def draw_pose(rng: np.random.Generator, yaw: float | None = None, pitch: float = 0.0) -> Pose:
    """Someone walking (mostly) or standing, perhaps with a telephone at the ear."""
    yaw = float(rng.uniform(0, 2 * np.pi)) if yaw is None else yaw
    spread = float(rng.uniform(0.06, 0.2))
    if rng.random() < 0.65:
        stride = float(rng.uniform(0.15, 0.5)) * (1 if rng.random() < 0.5 else -1)
        swing = stride * float(rng.uniform(0.7, 1.1))
        thighs = (stride, -stride * 0.8)
        knees = (0.1, 0.55 * abs(stride)) if stride > 0 else (0.55 * abs(stride), 0.1)
        arms = (-swing, swing)
    else:
        thighs, knees = (0.04, -0.03), (0.0, 0.0)
        arms = (float(rng.uniform(-0.15, 0.15)), float(rng.uniform(-0.15, 0.15)))
    elbows = (float(rng.uniform(0.1, 0.5)), float(rng.uniform(0.1, 0.5)))
    if rng.random() < 0.18:
        arms, elbows = (arms[0], 0.5), (elbows[0], 2.3)
    return Pose(yaw, thighs, knees, arms, elbows, spread, float(rng.uniform(0, 0.06)), pitch)


def riding_pose(rng: np.random.Generator, yaw: float) -> Pose:
    """Someone on a bicycle, pedalling."""
    turn = float(rng.uniform(-0.3, 0.3))
    return Pose(
        yaw,
        (1.15 + turn, 1.15 - turn),
        (1.25 + turn, 1.25 - turn),
        (0.95, 0.95),
        (0.25, 0.25),
        0.1,
        0.3,
    )


def sitting_pose(rng: np.random.Generator, yaw: float) -> Pose:
    """Someone on a bench."""
    arms = (float(rng.uniform(0.2, 0.5)), float(rng.uniform(0.2, 0.5)))
    return Pose(yaw, (1.4, 1.35), (1.4, 1.3), arms, (0.8, 0.8), 0.12, 0.05)
