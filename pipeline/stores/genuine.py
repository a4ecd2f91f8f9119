"""Whether a tar is the one that the manifest and the index speak of; if not, a paragraph names it."""

import tarfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.shards import Shard
from pipeline.stores.store import Location

BLOCK = 512
"""A member's header lies right before its bytes."""
ADVICE = (
    "`python -m sharding verify` of its shard set tells what else is wrong; bring the file back as it was "
    "written, or run the sharding job again."
)


class Member(NamedTuple):
    name: str | None
    """Full, as `crowd/train/00001.json`; None if the index does not say it."""
    offset: int
    size: int


def check_size(location: Location, size: int, shard: Shard) -> None:
    """Raises UserError unless the tar at `location`, of `size` bytes, is as long as the manifest says."""
    if size != shard.tar_bytes:
        raise UserError(
            f"{location.url} has {size} bytes, but the manifest says {shard.tar_bytes}: it was cut or "
            f"exchanged. {ADVICE}"
        )


def check_sha256(location: Location, found: str, shard: Shard) -> None:
    """Raises UserError unless `found`, the tar's hash, is the manifest's."""
    if found != shard.tar_sha256:
        raise UserError(
            f"{location.url} has the sha256 {found}, but the manifest says {shard.tar_sha256}: its bytes "
            "were damaged, the shard was exchanged for another, or the manifest is not the one it was "
            f"written with. {ADVICE}"
        )


def check_members(
    location: Location,
    read: Callable[[int, int], bytes],
    members: Iterable[Member],
    index: Location,
    original: Location,
) -> None:
    """Raises UserError if most of `members` are not where `index` says: this is another shard's tar.

    `location` is `original`, or this node's copy of it, whose hash was right when it came.

    To be asked when a sample is damaged. A few bad bytes spoil a few headers; of an exchanged tar hardly
    one fits.
    """
    fits = [_fits(read(m.offset - BLOCK, m.offset), m) for m in members]
    if 2 * sum(fits) < len(fits):
        what = (
            f"The tar was exchanged for another of the same size, or overwritten. {ADVICE}"
            if location == original
            else advice_on_copy(original)
        )
        raise UserError(
            f"{location.url} is not the tar that its index was made of: of {len(fits)} members looked for, "
            f"{len(fits) - sum(fits)} are not where {index.url} says. {what}"
        )


def advice_on_copy(original: Location) -> str:
    """What to do about a file of the node's cache that is not any more what came."""
    return (
        f"It is this node's copy of {original.url} and was damaged here: look at the disk, remove the file "
        "and resume the run, which fetches it again."
    )


def _fits(block: bytes, member: Member) -> bool:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return header.size == member.size and member.name in (None, header.name)
