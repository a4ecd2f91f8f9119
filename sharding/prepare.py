"""What is checked before anything is written: the source, the settings, the destination."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.shards import Manifest
from pipeline.stores.store import Location
from sharding.convert import Conversion
from sharding.datasets.base import Listing
from sharding.destination import check_destination
from sharding.existing import find_kept, finished_shards, has_child_shards
from sharding.plan import REPEATED, Plan, make_plan
from sharding.recipe import SetRequest
from sharding.writer import ShardJob

SHOWN = 5
DECODE_BYTES = 300 << 20
"""For decoding one image, besides what a worker takes anyway. The largest of CrowdHuman fits."""


@dataclass(frozen=True)
class PreparedSet:
    """A set that nothing speaks against: planned, its destination reachable and without other shards."""

    request: SetRequest
    plan: Plan
    listing: Listing
    todo: tuple[int, ...]
    """Numbers of the shards that are not there yet."""
    kept: Manifest | None = None
    """Of a set that is finished and must not be written over: people were forgotten from it, or what was
    quarantined was tried again and the source is as it was then.
    """
    unknown_keys: tuple[str, ...] = ()
    """Where in the filters' files keys stand that the release does not have."""

    @property
    def name(self) -> str:
        return f"{self.plan.dataset} {self.plan.split}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know and what is no error."""
        return tuple(f"!! {self.name}: {line}" for line in (*self._unknown(), *self._repeated()))

    def _unknown(self) -> Iterator[str]:
        if self.unknown_keys:
            shown = ", ".join(self.unknown_keys[:SHOWN])
            more = ", ..." if len(self.unknown_keys) > SHOWN else ""
            number = f"{len(self.unknown_keys):,} keys of the filters' files"
            yield f"{number} are not in the release: {shown}{more}"

    def _repeated(self) -> Iterator[str]:
        if number := self.plan.excluded.get(REPEATED):
            yield (
                f"{number:,} samples are left out: others have their keys, by names that differ in .jpg or "
                ".png at most"
            )

    @property
    def samples_todo(self) -> int:
        return sum(self.plan.shards.size(number) for number in self.todo)

    def conversion(self) -> Conversion:
        return conversion_of(self.request, self.plan.variants)

    def jobs(self) -> Iterator[ShardJob]:
        conversion, description = self.conversion(), self.plan.description()
        for number in self.todo:
            yield ShardJob(
                conversion,
                self.plan.shards[number],
                self.request.out,
                self.plan.hash,
                description,
            )


def conversion_of(request: SetRequest, variants: int) -> Conversion:
    return Conversion(
        adapter=request.adapter,
        source=request.source,
        split=request.split,
        config=request.config,
        variants=variants,
        memory=DECODE_BYTES,
    )


def check_outputs(requests: Sequence[SetRequest]) -> None:
    """Raises UserError if two sets would be written to one place."""
    by_out: dict[str, SetRequest] = {}
    for request in requests:
        other = by_out.setdefault(request.out.rstrip("/"), request)
        if other is not request:
            raise UserError(
                f"{_describe(other)} and {_describe(request)} would both be written to {request.out}. "
                "Write one of them elsewhere, or leave it out."
            )


def prepare(request: SetRequest) -> PreparedSet:
    """Raises UserError on a wrong or incomplete source, a destination that cannot be written to, or
    another plan's shards there.
    """
    out = Location(request.out)
    check_destination(out)
    listing = request.adapter.list_samples(request.source, request.split)
    _check_complete(request, listing)
    config = request.config
    plan = make_plan(request.adapter, request.split, listing, config)
    unknown = tuple(config.filters.unknown_keys(_keys(listing)).values())
    if (kept := find_kept(out, plan)) is not None:
        return PreparedSet(request, plan, listing, (), kept, unknown)
    if has_child_shards(out):
        raise UserError(
            f"people were forgotten from {request.out}, and its manifest.json is lost. Bring that back, or "
            "remove what is there and write the set anew: leave them out, by filters.exclude_keys."
        )
    done = finished_shards(out, plan)
    numbers = range(len(plan.shards))
    todo = tuple(number for number in numbers if plan.shards.name(number) not in done)
    return PreparedSet(request, plan, listing, todo, None, unknown)


def _keys(listing: Listing) -> Iterator[str]:
    yield from (sample.key for sample in listing.samples)
    yield from (faulty.key for faulty in listing.faulty)


def _check_complete(request: SetRequest, listing: Listing) -> None:
    named = len(listing.samples) + len(listing.faulty)
    if len(listing.faulty) > request.config.max_missing * named:
        first = listing.faulty[0]
        raise UserError(
            f"{len(listing.faulty):,} of {named:,} images that {_describe(request)} names are missing or "
            f"damaged, {first.origin} for one ({first.reason}). Unpack all archives of the release, or go on "
            "without them: --set max_missing=1 (of a recipe: --set defaults.max_missing=1)."
        )


def _describe(request: SetRequest) -> str:
    return f"{request.adapter.name} {request.split} from {request.source.url}"
