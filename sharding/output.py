"""What lies at an output already, and what is written there last: protocols, quarantine and manifest."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.accounting import ShardAccount, account_shard, add_up
from pipeline.annotation import Task
from pipeline.errors import UserError
from pipeline.shards import (
    MANIFEST,
    QUARANTINE,
    CountCheck,
    Manifest,
    Shard,
    ShardFile,
    ShardSet,
    index_name,
    parquet_bytes,
    protocol_name,
    read_parquet,
    sha256,
)
from pipeline.stores.store import Location
from pipeline.written import WrittenIndex, read_indexes
from sharding.datasets.base import Adapter, Listing
from sharding.plan import PLAN_VERSION, Plan, PlanConfig, deciding_settings, differences
from sharding.protocols import restrict

LARGEST_GROUPS = 3
DECIDING = ("plan_hash", "shards")
"""Fields of a manifest that say what samples a set holds; its others only tell something about them."""
ADDED_UP = ("source_plan", "excluded", "source_samples", "quarantine_sha256", "protocols")
"""Fields that must be true too, whatever set it is to streams and selections."""


def finished_shards(out: Location, plan: Plan) -> set[str]:
    """Names of the shards of `plan` that are complete in all variants.

    Raises UserError, naming the difference, if another plan's shards lie there.
    """
    sizes = out.file_sizes()
    indexes = [n for n in sorted(sizes) if n.startswith("shards/") and n.endswith(".parquet")]
    done = set()
    for name, written in read_indexes(out, indexes):
        if written is not None:
            _refuse_other_plan(out, plan, written)
            if sizes.get(name.removesuffix(".parquet") + ".tar") == written.tar_bytes:
                done.add(name)
    names = map(plan.shards.name, range(len(plan.shards)))
    variants = range(plan.variants)
    return {name for name in names if all(index_name(v, name) in done for v in variants)}


def find_kept(out: Location, plan: Plan) -> Manifest | None:
    """That of a finished set of which nothing can be written again: people were forgotten from it, or what
    was quarantined was tried again with the source of `plan`, and the rest is of an older one.

    Raises UserError if `plan` is of another set or has other settings, or files of the set are lost.
    """
    manifest = find_manifest(out)
    if manifest is None or not (manifest.generation or manifest.source_plan == plan.hash):
        return None
    settings = manifest_settings(plan.config, plan.task)
    asked: dict[str, Any] = {"dataset": plan.dataset, "split": plan.split, "settings": settings}
    if changed := list(differences({name: getattr(manifest, name) for name in asked}, asked)):
        raise _another_plan(out, plan, changed)
    if manifest.generation and unlisted(out, manifest):
        raise UserError(
            f"{out.url} holds what an interrupted `forget` or retry left. Run that again, with the same "
            "names or settings."
        )
    _require_whole(out, manifest)
    return manifest


def _refuse_other_plan(out: Location, plan: Plan, written: WrittenIndex) -> None:
    if written.plan_hash != plan.hash:
        now = {**plan.description(), "excluded": written.plan["excluded"]}  # those decide no bytes
        raise _another_plan(out, plan, list(differences(written.plan, now)))


def _another_plan(out: Location, plan: Plan, changed: Sequence[str]) -> UserError:
    named = "; ".join(changed)
    return UserError(
        f"{out.url} holds shards of another plan ("
        f"{named or 'same settings, but names, sizes or annotations in the source changed'}). "
        f"{_advice(find_manifest(out), plan)}"
    )


def _advice(manifest: Manifest | None, plan: Plan) -> str:
    """What to do about a plan that is not the one of the set at the output."""
    advice = "Write to another URL, or remove what is there first."
    if manifest is None:
        return advice
    advice += _who_comes_back(manifest)
    same_settings = manifest.settings == manifest_settings(plan.config, plan.task)
    if same_settings and manifest.quarantined and manifest.source_samples == plan.source_samples:
        return (
            "If that is because images that were missing or damaged are back, --retry-quarantined takes them "
            f"in and the set is finished again. If not: {advice[0].lower()}{advice[1:]}"
        )
    return advice


def _who_comes_back(manifest: Manifest) -> str:
    """What to know before a set is removed and written anew."""
    if not manifest.generation and not manifest.withheld:
        return ""
    return " That brings back who was to be forgotten from it: leave them out, by filters.exclude_keys."


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


def _require_whole(out: Location, manifest: Manifest) -> None:
    """Raises UserError if files of a set are lost or not its manifest's."""
    if wrong := list(_wrong_files(out, manifest)):
        raise UserError(
            f"{out.url} is not whole: {len(wrong):,} of its files are lost or others, {wrong[0]} for one. "
            f"`python -m sharding verify {out.url}` tells what else is wrong. {QUARANTINE} and supplements "
            "(shards/v*/s*) are made again by --retry-quarantined. Bring others back, or remove what is "
            f"there and write the set anew.{_who_comes_back(manifest)}"
        )


def _wrong_files(out: Location, manifest: Manifest) -> Iterator[str]:
    """Files that are missing, tars of another size, and other files that are small and not as written."""
    sizes = out.file_sizes()
    for shard in manifest.shards:
        tar = shard.files[0]
        yield from (name for name in shard.files if name not in sizes)
        if sizes.get(tar, shard.tar_bytes) != shard.tar_bytes:
            yield tar
    hashes = {protocol_name(name): expected for name, expected in manifest.protocols.items()}
    for name, expected in {**hashes, QUARANTINE: manifest.quarantine_sha256}.items():
        if sha256(out.child(name).read_if_there() or b"") != expected:
            yield name


def unlisted(out: Location, manifest: Manifest | None) -> list[str]:
    """Tars and indexes below `out` that the manifest does not name: what killed runs left."""
    listed = {file for shard in manifest.shards for file in shard.files} if manifest else set()
    return [file for file in out.list_files() if ShardFile.parse(file) and file not in listed]


def first_shards(manifest: Manifest | None) -> list[Shard]:
    """Those of the first variant."""
    return [shard for shard in manifest.shards if shard.variant == 0] if manifest else []


def has_child_shards(out: Location) -> bool:
    """Whether `forget` wrote here."""
    files = map(ShardFile.parse, out.list_files())
    return any(file is not None and file.generation for file in files)


def find_manifest(out: Location) -> Manifest | None:
    """None if there is none. Raises UserError if it is damaged: nothing else tells who is withheld."""
    data = out.child(MANIFEST).read_if_there()
    if data is None:
        return None
    try:
        return Manifest.from_json(data)
    except ValueError:
        return ShardSet(out.url).manifest  # says what is wrong with it


def whole_supplements(out: Location, manifest: Manifest, names: Sequence[str]) -> list[str]:
    """Of the supplements `names` those that are whole; what lay in the others is quarantined again."""
    sizes = out.file_sizes()
    whole = set()
    wanted = {index_name(v, name): name for name in names for v in range(manifest.variants)}
    for file, written in read_indexes(out, sizes.keys() & wanted.keys()):
        tar_bytes = sizes.get(file.removesuffix(".parquet") + ".tar")
        if written is not None and written.tar_bytes == tar_bytes:
            whole.add(file)
    variants = range(manifest.variants)
    return [name for name in names if all(index_name(v, name) in whole for v in variants)]


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


def manifest_settings(config: PlanConfig, task: Task) -> dict[str, Any]:
    return {"plan_version": PLAN_VERSION, **deciding_settings(config, task)}


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
