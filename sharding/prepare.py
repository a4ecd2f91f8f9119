"""What is checked before anything is written: the source, the settings, the destination."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.store import Location
from sharding.datasets.base import Listing
from sharding.output import check_destination, finished_shards
from sharding.plan import Plan, ShardPlan, make_plan
from sharding.recipe import SetRequest


@dataclass(frozen=True)
class PreparedSet:
    """A set that nothing speaks against: planned, its destination reachable and without other shards."""

    request: SetRequest
    plan: Plan
    listing: Listing
    todo: tuple[ShardPlan, ...]

    @property
    def name(self) -> str:
        return f"{self.plan.dataset} {self.plan.split}"


def prepare_sets(requests: Sequence[SetRequest]) -> list[PreparedSet]:
    """Raises UserError if two sets would be written to one place, or `prepare` does."""
    by_out: dict[str, SetRequest] = {}
    for request in requests:
        other = by_out.setdefault(request.out.rstrip("/"), request)
        if other is not request:
            raise UserError(
                f"{_describe(other)} and {_describe(request)} would both be written to {request.out}. "
                "Write one of them elsewhere, or leave it out."
            )
    return [prepare(request) for request in requests]


def prepare(request: SetRequest) -> PreparedSet:
    """Raises UserError on a wrong or incomplete source, a destination that cannot be written to, or
    another plan's shards there.
    """
    out = Location(request.out)
    check_destination(out)
    listing = request.adapter.list_samples(request.source, request.split)
    _check_complete(request, listing)
    plan = make_plan(request.adapter, request.split, listing, request.config)
    done = finished_shards(out, plan)
    todo = tuple(shard for shard in plan.shards if shard.name not in done)
    return PreparedSet(request, plan, listing, todo)


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
    return f"{request.adapter.name} {request.split} from {request.source}"
