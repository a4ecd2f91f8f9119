"""Releases without a format, for the tests of planning and writing: the adapter holds the bytes itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import simplejpeg
from shardset import picture

from pipeline.annotation import Person, Task
from sharding.datasets.base import WHOLE_CROP, FaultySample, Listing, Published, SourceSample
from sharding.source import Source


@dataclass
class FakeAdapter:
    task: Task
    images: dict[str, bytes]
    """By locator."""
    samples: list[SourceSample]
    faulty: tuple[FaultySample, ...] = ()
    name: str = "fake"
    licence: str = "none"
    homepage: str = "none"
    dull: int = 3
    """Samples that it leaves out."""
    protocols: Mapping[str, pa.Table] = field(default_factory=dict)
    splits: Mapping[str, tuple[Published, ...]] = field(
        default_factory=lambda: {"train": (Published("images", 7, "V"),)}
    )

    def list_samples(self, source: Source, split: str) -> Listing:
        total = len(self.samples) + len(self.faulty) + self.dull
        found, excluded = {"images": len(self.samples)}, {"too dull": self.dull}
        return Listing(self.samples, total, excluded, self.faulty, found, self.protocols)

    def read(self, source: Source, locator: str) -> bytes:
        return self.images[locator]


def jpeg(height: int, width: int, seed: int = 0) -> bytes:
    return simplejpeg.encode_jpeg(picture(height, width, seed), 90)


def fake_crops(count: int, identities: int) -> FakeAdapter:
    """Crops of 64 x 32 pixels; every `identities + 1`-th person is unknown."""
    images, samples = {}, []
    for number in range(count):
        name = f"{number:04d}"
        known = number % (identities + 1)
        identity = f"train:{known}" if known < identities else None
        images[name] = jpeg(64, 32, number)
        person = Person(box=WHOLE_CROP, identity=identity)
        samples.append(SourceSample(f"fake/train/{name}", name, name, len(images[name]), (person,)))
    return FakeAdapter("reid", images, samples)


def fake_scenes(count: int) -> FakeAdapter:
    """Scenes of 48 x 80 pixels with a person that leaves the image and a region to ignore."""
    persons = (Person(box=(-5, 3, 20, 60)), Person(box=(30, 1, 40, 20), ignore=True))
    images = {f"{number:04d}": jpeg(48, 80, number) for number in range(count)}
    samples = [
        SourceSample(f"fake/train/{name}", name, name, len(data), persons, (80, 48))
        for name, data in images.items()
    ]
    return FakeAdapter("detection", images, samples)
