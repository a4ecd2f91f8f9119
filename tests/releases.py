"""What the adapters' tests share: writing hand-made releases and listing them with every key checked."""

from pathlib import Path

from pipeline.annotation import check_key
from sharding.datasets import ADAPTERS
from sharding.datasets.base import Listing
from sharding.source import Source

JPEG = b"\xff\xd8 not decoded by any adapter \xff\xd9"


def write_file(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(name: str, source: Path | str, locator: str) -> bytes:
    return ADAPTERS[name].read(Source(str(source)), locator)


def list_samples(name: str, source: Path | str, split: str) -> Listing:
    listing = ADAPTERS[name].list_samples(Source(str(source)), split)
    keys = [sample.key for sample in (*listing.samples, *listing.faulty)]
    for key in keys:
        check_key(key)
    assert len(keys) == len(set(keys))
    assert listing.total == len(keys) + sum(listing.excluded.values())
    return listing
