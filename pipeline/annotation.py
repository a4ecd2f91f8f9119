"""The unified annotation: one record a sample, whatever the dataset it came from.

Boxes are xyxy in pixels, 0-based and half-open (x2 = x1 + width), exactly as far out of the image as
the source put them: whoever reads a sample clips. Nothing that the source said is thrown away:
regions to ignore and people without identity stay, flagged.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

FILL_RGB = (124, 116, 104)
"""Padding and canvas fill: the ImageNet mean, so that it is near zero once normalised."""

MAX_KEY_BYTES = 100
MAX_JSON_BYTES = 4 << 20

SAFE_KEY = re.compile(r"[A-Za-z0-9_,-]+(/[A-Za-z0-9_,-]+)*")
EXTENSION = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)
"""Of an image. Database keys may end in a number after a dot, which tells them apart."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Box = tuple[Finite, Finite, Finite, Finite]
Task = Literal["detection", "reid", "search"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Person(_Record):
    """A person, or a region in which people are neither positive nor negative (`ignore`)."""

    box: Box
    identity: str | None = None
    """`namespace:raw`; two persons are the same iff dataset and identity are equal. None: unlabelled."""
    ignore: bool = False
    category: str = "person"
    visible_box: Box | None = None
    camera: str | None = None
    occlusion: str | None = None
    """The source's own word for how much is hidden, such as `>40`."""
    tags: tuple[str, ...] = ()
    extra: dict[str, JsonValue] = {}
    """What else the source said about this person, verbatim."""


class Canvas(_Record):
    """Where a re-ID crop was put: canvas size = `ratio` x crop size, crop corner at `offset`."""

    ratio: tuple[Finite, Finite]
    """Width and height of the canvas over those of the crop."""
    offset: tuple[Finite, Finite]
    """x and y of the crop's corner, in pixels of the stored canvas."""
    variant: int


class Annotation(_Record):
    version: Literal[1]
    key: str
    dataset: str
    domain: str
    """What a domain classifier tells apart, usually the dataset."""
    split: str
    task: Task
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    persons: tuple[Person, ...] = ()
    tags: tuple[str, ...] = ()
    crop_size: tuple[int, int] | None = None
    """Width and height of the source crop, in pixels (canvases only)."""
    canvas: Canvas | None = None
    source: str
    """Full name of the file, archive member or database key that the sample came from."""
    extra: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _check(self) -> "Annotation":
        check_key(self.key)
        if (self.canvas is None) != (self.crop_size is None):
            raise ValueError("canvas and crop_size come together")
        return self

    def to_json(self) -> bytes:
        """Deterministic UTF-8 JSON without defaults. The version has none: it is always there."""
        return self.model_dump_json(exclude_defaults=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Annotation":
        """Raises ValueError (pydantic's) on anything that is not a valid annotation."""
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"annotation of {len(data)} bytes, more than {MAX_JSON_BYTES}")
        return cls.model_validate_json(data)


def identities_of(persons: Sequence[Person]) -> list[str]:
    """Each once, sorted."""
    return sorted({person.identity for person in persons if person.identity is not None})


def summarise(persons: Sequence[Person]) -> dict[str, Any]:
    """What an index tells of a sample's people: its columns `persons`, `ignored` and `identities`."""
    ignored = sum(person.ignore for person in persons)
    return {
        "persons": len(persons) - ignored,
        "ignored": ignored,
        "identities": identities_of(persons),
    }


def sample_key(dataset: str, split: str, relative_path: str) -> str:
    """`dataset/split/relative path` without `.jpg` or `.png`: safe as a tar member and a WebDataset key.

    Other characters become `_` and long names are cut; either appends 16 hex digits of the original's
    sha256, so that different paths keep different keys.
    """
    name = f"{dataset}/{split}/{relative_path}"
    stem = EXTENSION.sub("", name)
    if len(stem) <= MAX_KEY_BYTES and SAFE_KEY.fullmatch(stem):
        return stem
    key = re.sub(r"[^A-Za-z0-9_,/-]", "_", stem)
    key = re.sub(r"/+", "/", key).strip("/")
    if key != stem or len(key) > MAX_KEY_BYTES:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        key = f"{key[: MAX_KEY_BYTES - 17]}-{digest}"
    return key


def check_key(key: str) -> None:
    """Raises ValueError unless `key` has the form that `sample_key` makes."""
    if not SAFE_KEY.fullmatch(key) or len(key) > MAX_KEY_BYTES:
        raise ValueError(f"unsafe sample key {key!r}")
