"""Another try for what a finished set had to quarantine: what can be used now goes into supplement shards.

The planned shards stay as they are, so the set no longer equals a fresh write; its manifest says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.accounting import account_shard, add_up
from pipeline.errors import UserError
from pipeline.shards import MANIFEST, Manifest, ShardSet, index_name
from pipeline.stores.store import Location
from pipeline.written import read_indexes
from sharding.datasets.base import Listing, SourceSample
from sharding.output import (
    complete,
    find_manifest,
    first_shards,
    manifest_settings,
    unlisted,
    whole_supplements,
)
from sharding.plan import Plan, PlannedSample, ShardPlan, differences, make_plan
from sharding.prepare import conversion_of
from sharding.recipe import SetRequest
from sharding.writer import ShardJob


@dataclass(frozen=True)
class PreparedRetry:
    """Samples that were quarantined and that the source holds now."""

    request: SetRequest
    manifest: Manifest
    samples: tuple[SourceSample, ...]
    plan: Plan | None
    """What the source gives now, if it still says the same of all that is in the set."""
    withheld: int
    """Samples that are left as they are, for they show somebody who was forgotten."""

    @property
    def name(self) -> str:
        return f"{self.manifest.dataset} {self.manifest.split}, quarantined"

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.withheld:
            return ()
        return (
            f"!! {self.name}: {self.withheld:,} more show people who were forgotten, and stay out",
        )

    def jobs(self) -> Iterator[ShardJob]:
        """Raises UserError if the manifest was replaced meanwhile."""
        self._clear()
        conversion = conversion_of(self.request, self.manifest.variants)
        for number, part in zip(self._numbers, self._parts, strict=True):
            planned = tuple(PlannedSample(sample, run) for run, sample in enumerate(part))
            yield ShardJob(
                conversion,
                ShardPlan(f"s{number:06d}", planned),
                self.request.out,
                self.manifest.plan_hash,
                {"supplement": True},
                rescue=True,
            )

    def finish(self) -> Manifest:
        """Adds the supplements to the manifest. Raises UserError if that was replaced meanwhile."""
        out = Location(self.request.out)
        out.sweep()
        with out.exclusive():
            self._require_unchanged(out)
            planned = [s.name for s in first_shards(self.manifest) if not s.supplement]
            new = [f"s{number:06d}" for number in self._numbers]
            supplements = whole_supplements(out, self.manifest, [*self._supplements, *new])
            template = self._template(out)
            return complete(out, template, planned, supplements, self.manifest, self.plan)

    def _clear(self) -> None:
        """Removes what a killed try left, which is made again."""
        out = Location(self.request.out)
        with out.exclusive():
            self._require_unchanged(out)
            for file in unlisted(out, self.manifest):
                out.child(file).remove()

    def _require_unchanged(self, out: Location) -> None:
        if find_manifest(out) != self.manifest:
            raise UserError(f"{out.url} was changed while the job ran: run it again.")

    def _template(self, out: Location) -> Manifest:
        """The manifest. If it may know the source as it is now, a plain `write` finds the set finished."""
        if self.plan is None or self.plan.hash == self.manifest.plan_hash:
            return self.manifest
        known = {"source_plan": self.plan.hash, "root": ShardSet(out.url).root_sha256}
        return self.manifest.model_copy(update=known)

    @property
    def _supplements(self) -> list[str]:
        return [shard.name for shard in first_shards(self.manifest) if shard.supplement]

    @property
    def _numbers(self) -> range:
        """Of the supplements that this run writes: the next free ones by the manifest."""
        first = max((int(name[1:].split("-")[0]) for name in self._supplements), default=-1) + 1
        return range(first, first + len(self._parts))

    @cached_property
    def _parts(self) -> list[list[SourceSample]]:
        """Samples of a supplement each, which is as large as a planned shard."""
        reid, config = self.manifest.task == "reid", self.request.config
        target = config.shard_crops if reid else config.shard_bytes
        parts: list[list[SourceSample]] = []
        weight = target
        for sample in self.samples:
            if weight >= target:
                parts.append([])
                weight = 0
            parts[-1].append(sample)
            weight += 1 if reid else sample.size_bytes
        return parts


def prepare_retry(request: SetRequest) -> PreparedRetry | None:
    """None if the set is not finished: then it is to be written first.

    Raises UserError if settings or source are not those that the set was made with.
    """
    out = Location(request.out)
    manifest = find_manifest(out)
    if manifest is None:
        return None
    listing = request.adapter.list_samples(request.source, request.split)
    _refuse_changes(request, manifest, listing)
    rows = _quarantined(out, manifest)
    plan = make_plan(request.adapter, request.split, listing, request.config)
    samples = {
        planned.source.key: planned.source
        for shard in plan.shards
        for planned in shard.samples
        if planned.source.key in rows and planned.fault is None
    }
    for key, sample in samples.items():
        _refuse_another(request, sample, rows[key])
    tried = tuple(samples[key] for key in sorted(samples) if not _withheld(manifest, samples[key]))
    same = manifest.source_claims == plan.claims_without(rows)
    return PreparedRetry(
        request, manifest, tried, plan if same else None, len(samples) - len(tried)
    )


def _withheld(manifest: Manifest, sample: SourceSample) -> bool:
    """Whether it shows somebody who was forgotten while nobody could know that."""
    people = {person.identity for person in sample.persons if person.identity is not None}
    return any(manifest.pseudonym(identity) in manifest.withheld for identity in people)


def _quarantined(out: Location, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Rows by key, from the indexes: what a killed run left beside them decides nothing."""
    shards = first_shards(manifest)
    names = [index_name(shard.variant, shard.name) for shard in shards]
    accounts = []
    for shard, (name, written) in zip(shards, read_indexes(out, names), strict=True):
        if written is None or written.sha256 != shard.index_sha256:
            raise UserError(
                f"{out.url}/{name} is not the index that {MANIFEST} names: `python -m sharding verify "
                f"{out.url}` tells what else is wrong."
            )
        accounts.append(account_shard(shard, written.table))
    return {row["key"]: row for row in add_up(accounts).quarantine.to_pylist()}


def _refuse_changes(request: SetRequest, manifest: Manifest, listing: Listing) -> None:
    settings = manifest_settings(request.config, request.adapter.task)
    changed = list(differences(dict(manifest.settings), settings, "settings."))
    if listing.total != manifest.source_samples:
        changed.append(f"samples in the source: {manifest.source_samples} -> {listing.total}")
    if changed:
        raise UserError(
            f"{request.out} was made otherwise ({'; '.join(changed)}): quarantined samples can be tried "
            "again with the same settings and release only."
        )


def _refuse_another(request: SetRequest, sample: SourceSample, row: dict[str, Any]) -> None:
    """What was missing said nothing of people; what was there must still say the same."""
    identities = sorted({p.identity for p in sample.persons if p.identity is not None})
    if sample.origin != row["origin"] or row["identities"] not in (None, [], identities):
        raise UserError(
            f"{request.source.url} says otherwise of {sample.origin} than when {request.out} was made: "
            "quarantined samples can be tried again with the same release only."
        )
