"""What becomes of one sample of a source: an image and an annotation for each variant, or a fault.

Scenes pass through coded as they are, or are recoded on request; re-ID crops become canvases.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from pydantic import ValidationError

from pipeline.annotation import MAX_JSON_BYTES, Annotation, Box, Person
from pipeline.shards import sha256
from pipeline.stores.store import ATTEMPTS, retry
from sharding.canvas import place_crop, resize
from sharding.datasets.base import MISSING, Adapter, SourceSample
from sharding.filters import is_large
from sharding.image import CodedImage, Fault, open_image
from sharding.plan import PlanConfig, PlannedSample
from sharding.source import Source

VANISHED = Fault(MISSING)
"""Of a sample that was there when the source was listed."""
COPIES = 3
"""Of a coded image that are alive while it is decoded: as read, without metadata, in the decoder."""


@dataclass(frozen=True)
class Conversion:
    """How the samples of one split are converted."""

    adapter: Adapter
    source: Source
    split: str
    config: PlanConfig
    variants: int
    memory: int
    """Bytes that decoding one image may take."""


class NeedsMemory(Exception):
    """An image is too large for the memory that was set aside."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"decoding takes {needed:,} bytes")
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Member:
    """What one variant's tar holds for one sample."""

    image: bytes
    image_type: str
    annotation: Annotation
    text: bytes


def read_sample(job: Conversion, planned: PlannedSample) -> bytes | Fault:
    """The sample's coded image. Raises OSError on what may pass, after trying again."""
    if planned.fault:
        return Fault(planned.fault)
    # Reads from a store are tried again where they are made: attempts of both would multiply.
    attempts = ATTEMPTS if job.source.is_local else 1
    try:
        return retry(lambda: job.adapter.read(job.source, planned.source.locator), attempts)
    except FileNotFoundError:
        if not job.source.exists():
            raise OSError(f"the source {job.source.url} has gone") from None
        return VANISHED
    except ValueError as error:
        return Fault(f"unreadable: {error}")


def convert(
    job: Conversion, sample: SourceSample, data: bytes | Fault
) -> tuple[list[Member] | Fault, str | None]:
    """The sample in every variant, and the sha256 of its source bytes. Raises NeedsMemory."""
    if isinstance(data, Fault):
        return data, None
    image = open_image(data, job.config.keep_metadata)
    if isinstance(image, CodedImage):
        try:
            return _members(job, sample, image), sha256(data)
        except ValidationError as error:
            return Fault(f"invalid annotation: {error.errors()[0]['msg']}"), sha256(data)
    return image, sha256(data)


def _members(job: Conversion, sample: SourceSample, image: CodedImage) -> list[Member] | Fault:
    size = image.width, image.height
    if sample.expected_size not in (None, size):
        width, height = sample.expected_size or (0, 0)
        return Fault(f"annotated as {width}x{height}, is {size[0]}x{size[1]}")
    if not is_large(size, job.config.filters):
        return Fault(f"{size[0]}x{size[1]} pixels, smaller than asked for by filters.min_size")
    if job.adapter.task == "reid":
        return _canvases(job, sample, image)
    return _scene(job, sample, image)


def _scene(job: Conversion, sample: SourceSample, image: CodedImage) -> list[Member] | Fault:
    if job.config.recode is not None and _is_to_be_recoded(image, job.config):
        member = _recoded(job, sample, image)
    else:
        if job.config.check == "full":
            _reserve(job, image, image.check_bytes())
            if fault := image.check():
                return fault
        annotation = _annotation(job, sample, (image.width, image.height), sample.persons)
        member = Member(image.data, image.type, annotation, annotation.to_json())
    if isinstance(member, Fault):
        return member
    if len(member.text) > MAX_JSON_BYTES:
        return Fault(f"annotation of {len(member.text)} bytes, more than {MAX_JSON_BYTES}")
    return [member]


def _is_to_be_recoded(image: CodedImage, config: PlanConfig) -> bool:
    """A JPEG that is small enough would only lose by it."""
    longest = max(image.width, image.height)
    return image.type != "jpg" or (config.max_side is not None and longest > config.max_side)


def _recoded(job: Conversion, sample: SourceSample, image: CodedImage) -> Member | Fault:
    """As JPEG, reduced if it is too large; boxes go with it, `extra` keeps the source's size."""
    _reserve(job, image, 2 * image.decode_bytes())
    pixels = image.decode()
    if isinstance(pixels, Fault):
        return pixels
    scale = min(1.0, (job.config.max_side or 1 << 30) / max(image.width, image.height))
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if scale < 1:
        pixels = resize(pixels, width, height)
    scales = width / image.width, height / image.height
    annotation = _annotation(
        job,
        sample,
        (width, height),
        tuple(_scaled(person, *scales) for person in sample.persons),
        extra={**sample.extra, "source_size": [image.width, image.height]},
    )
    quality = int((job.config.recode or "").removeprefix("jpeg:"))
    jpeg = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality, "RGB", "420", fastdct=False
    )
    return Member(jpeg, "jpg", annotation, annotation.to_json())


def _scaled(person: Person, x: float, y: float) -> Person:
    def scale(box: Box | None) -> Box | None:
        return None if box is None else (box[0] * x, box[1] * y, box[2] * x, box[3] * y)

    return person.model_copy(
        update={"box": scale(person.box), "visible_box": scale(person.visible_box)}
    )


def _canvases(job: Conversion, sample: SourceSample, image: CodedImage) -> list[Member] | Fault:
    _reserve(job, image, image.decode_bytes())
    crop = image.decode()
    if isinstance(crop, Fault):
        return crop
    config = job.config.canvas
    (person,) = sample.persons
    members = []
    for variant in range(job.variants):
        placed = place_crop(crop, config, job.config.seed, sample.key, variant)
        annotation = _annotation(
            job,
            sample,
            (config.size[1], config.size[0]),
            (person.model_copy(update={"box": placed.box}),),
            crop_size=(image.width, image.height),
            canvas=placed.canvas,
        )
        members.append(Member(placed.jpeg, "jpg", annotation, annotation.to_json()))
    return members


def _reserve(job: Conversion, image: CodedImage, decoding: int) -> None:
    needed = decoding + COPIES * len(image.data)
    if needed > job.memory:
        raise NeedsMemory(needed)


def _annotation(
    job: Conversion,
    sample: SourceSample,
    size: tuple[int, int],
    persons: tuple[Person, ...],
    **other: Any,
) -> Annotation:
    return Annotation(
        version=1,
        key=sample.key,
        dataset=job.adapter.name,
        domain=job.adapter.name,
        split=job.split,
        task=job.adapter.task,
        width=size[0],
        height=size[1],
        persons=persons,
        tags=sample.tags,
        source=sample.origin,
        **{"extra": sample.extra, **other},
    )
