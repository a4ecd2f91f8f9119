"""What is written last at an output: protocols, quarantine and manifest."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.accounting import ShardAccount, account_shard, add_up
from pipeline.errors import UserError
from pipeline.shards import (
    MANIFEST,
    QUARANTINE,
    CountCheck,
    Manifest,
    Shard,
    ShardSet,
    index_name,
    parquet_bytes,
    protocol_name,
    read_parquet,
    sha256,
)
from pipeline.stores.store import Location
from pipeline.written import read_indexes
from sharding.datasets.base import Adapter, Listing
from sharding.existing import find_manifest, first_shards, unlisted, whole_supplements
from sharding.plan import Plan, manifest_settings
from sharding.protocols import restrict

LARGEST_GROUPS = 3
DECIDING = ("plan_hash", "shards")
"""Fields of a manifest that say what samples a set holds; its others only tell something about them."""
ADDED_UP = ("source_plan", "excluded", "source_samples", "quarantine_sha256", "protocols")
"""Fields that must be true too, whatever set it is to streams and selections."""


def finish(out: Location, plan: Plan, adapter: Adapter, listing: Listing) -> Manifest:
    """Writes protocols, quarantine.parquet and, last, the manifest; removes shards that it does not name.

    Every planned shard must be there. A manifest of the same samples stays as it is: streams and selections
    know the set by its sha256. Raises UserError, and writes no manifest, if no sample could be used.
    """
    out.sweep()
    with out.exclusive():
        before = find_manifest(out)
        if before is not None and before.generation:
            raise UserError(
                f"{out.url} was forgotten from while the job ran, and is left as it is."
            )
        names = [plan.shards.name(number) for number in range(len(plan.shards))]
        protocols = _write_protocols(out, plan, listing, before.protocols if before else {})
        template = _manifest(plan, adapter, listing).model_copy(update={"protocols": protocols})
        supplements = []
        if before is not None and before.plan_hash == plan.hash:
            kept = {"source_plan": before.source_plan, "withheld": before.withheld}
            template = template.model_copy(update=kept)
            supplements = [shard.name for shard in first_shards(before) if shard.supplement]
        whole = whole_supplements(out, template, supplements)
        return complete(out, template, names, whole, before)


def complete(
    out: Location,
    template: Manifest,
    names: Sequence[str],
    supplements: Sequence[str],
    before: Manifest | None,
) -> Manifest:
    """Adds up the indexes of planned shards and of supplements into the rest of `template`.

    Returns `before`, the manifest that lies there, if nothing in it has changed that must be true.
    """
    shards: list[Shard] = []
    accounts: list[ShardAccount] = []
    for variant in range(template.variants):
        wanted = {index_name(variant, name): name for name in (*names, *supplements)}
        lost = []
        for file, written in read_indexes(out, wanted):
            if written is None or written.plan_hash != template.plan_hash:
                lost.append(file)
                continue
            shards.append(written.shard(wanted[file], variant, wanted[file] in supplements))
            if variant == 0:
                accounts.append(account_shard(shards[-1], written.table))
        if lost:
            raise UserError(_explain_lost(out, lost, len(wanted)))
    account = add_up(accounts)
    quarantine_sha256 = _write_table(
        out, QUARANTINE, account.quarantine, before.quarantine_sha256 if before else None
    )
    if not account.samples:
        raise UserError(
            f"{template.dataset} {template.split}: not one sample could be used "
            f"({_grouped(account.quarantine)}; see {out.child(QUARANTINE).url}). Look at the source, and "
            f"remove {out.url} before the next try."
        )
    update = {
        **account.claims(),
        "shards": tuple(shards),
        "quarantine_sha256": quarantine_sha256,
        "root": template.root if _slots(shards) == _slots(template.shards) else None,
    }
    manifest = _replace(out, before, template.model_copy(update=update))
    for file in unlisted(out, manifest):
        out.child(file).remove()
    return manifest


def _replace(out: Location, before: Manifest | None, manifest: Manifest) -> Manifest:
    """Writes `manifest`, with the root of `before` if it is of the same samples; or leaves `before` there."""
    if before is not None and _agree(before, manifest, DECIDING):
        if _agree(before, manifest, ADDED_UP):
            return before
        manifest = manifest.model_copy(update={"root": ShardSet(out.url).root_sha256})
    out.child(MANIFEST).write(manifest.to_json())
    return manifest


def _explain_lost(out: Location, lost: Sequence[str], wanted: int) -> str:
    what = f"{len(lost):,} of {wanted:,} indexes vanished or were replaced while the job ran"
    several = len(lost) > 1 or wanted == 1
    advice = (
        f"Is {out.url} one and the same folder on all nodes? If not, write to one that they share, or to a "
        "store; if it is, run it again."
        if several and out.is_local
        else "Run it again."
    )
    return f"{what}, {out.url}/{lost[0]} for one. {advice}"


def _slots(shards: Iterable[Shard]) -> list[tuple[str, int]]:
    return [(shard.name, shard.slots) for shard in shards]


def _agree(one: Manifest, other: Manifest, fields: Iterable[str]) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _write_table(out: Location, name: str, table: pa.Table, before: str | None) -> str:
    """sha256 of the file `name`, which stays as it is if it has the hash `before` and holds `table`."""
    location = out.child(name)
    old = location.read_if_there() if before else None
    data = parquet_bytes(table)
    # The bytes of another pyarrow may be others.
    if (
        old is not None
        and sha256(old) == before
        and (old == data or read_parquet(old).equals(table))
    ):
        return before
    location.write(data)
    return sha256(data)


def quarantine_summary(out: Location) -> str:
    """`12 missing from the source, 1 truncated JPEG; see .../quarantine.parquet`, of a finished set."""
    return f"{_grouped(read_quarantine(out))}; see {out.child(QUARANTINE).url}"


def read_quarantine(out: Location) -> pa.Table:
    return read_parquet(out.child(QUARANTINE).read())


def _grouped(quarantined: pa.Table) -> str:
    """How many rows have which reason, the most frequent ones by name."""
    groups = Counter(quarantined["reason"].to_pylist()).most_common()
    shown = [f"{number:,} {reason}" for reason, number in groups[:LARGEST_GROUPS]]
    if rest := sum(number for _, number in groups[LARGEST_GROUPS:]):
        shown.append(f"{rest:,} for other reasons")
    return ", ".join(shown)


def _manifest(plan: Plan, adapter: Adapter, listing: Listing) -> Manifest:
    """What the plan and the listing know; the sums are not known yet."""
    return Manifest(
        dataset=plan.dataset,
        domain=plan.dataset,
        split=plan.split,
        task=plan.task,
        shards=(),
        variants=plan.variants,
        samples=0,
        quarantined=0,
        excluded=plan.excluded,
        source_samples=plan.source_samples,
        persons=0,
        ignored=0,
        counts=compare_counts(adapter, plan.split, listing),
        settings=manifest_settings(plan.config, plan.task),
        plan_hash=plan.hash,
        licence=adapter.licence,
        homepage=adapter.homepage,
    )


def _write_protocols(
    out: Location, plan: Plan, listing: Listing, before: Mapping[str, str]
) -> dict[str, str]:
    """sha256 of each file, by the protocol's name; `before` is what they were."""
    return {
        name: _write_table(out, protocol_name(name), table, before.get(name))
        for name, table in _protocol_tables(plan, listing)
    }


def _protocol_tables(plan: Plan, listing: Listing) -> Iterator[tuple[str, pa.Table]]:
    """Each protocol of the source, of what is planned, by name."""
    if listing.protocols:
        known = pa.array([planned.source.key for planned in _planned(plan)])
        for name, protocol in listing.protocols.items():
            yield name, restrict(protocol, known)


def _planned(plan: Plan) -> Iterator[Any]:
    return (planned for shard in plan.shards for planned in shard.samples)


def compare_counts(adapter: Adapter, split: str, listing: Listing) -> tuple[CountCheck, ...]:
    """Each published figure that the listing counted too."""
    return tuple(
        CountCheck(
            what=published.what,
            published=published.number,
            found=listing.found[published.what],
            evidence=published.evidence,
        )
        for published in adapter.splits[split]
        if published.what in listing.found
    )
