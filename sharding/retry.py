"""Another try for what a finished set had to quarantine: what can be used now goes into supplement shards.

The planned shards stay as they are, so the set no longer equals a fresh write; its manifest says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipeline.annotation import identities_of
from pipeline.errors import UserError
from pipeline.shards import Manifest
from pipeline.stores.store import Location
from sharding.datasets.base import Listing, SourceSample
from sharding.existing import find_manifest, first_shards, unlisted, whole_supplements
from sharding.output import complete
from sharding.plan import PlannedSample, ShardPlan, differences, make_plan, manifest_settings
from sharding.prepare import conversion_of
from sharding.recipe import SetRequest
from sharding.same_release import read_written
from sharding.writer import ShardJob


@dataclass(frozen=True)
class PreparedRetry:
    """Samples that were quarantined and that the source holds now."""

    request: SetRequest
    manifest: Manifest
    samples: tuple[SourceSample, ...]
    source_plan: str
    """Hash of the plan that the source gives now."""
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
            return complete(out, self._template(), planned, supplements, self.manifest)

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

    def _template(self) -> Manifest:
        """The manifest, which knows the source as it is now: then a plain `write` finds the set finished."""
        if not self.manifest.quarantined or self.source_plan == self.manifest.plan_hash:
            return self.manifest
        return self.manifest.model_copy(update={"source_plan": self.source_plan})

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
    plan = make_plan(request.adapter, request.split, listing, request.config)
    samples = read_written(out, manifest).find_again(plan, request.source.url)
    tried = tuple(samples[key] for key in sorted(samples) if not _withheld(manifest, samples[key]))
    return PreparedRetry(request, manifest, tried, plan.hash, len(samples) - len(tried))


def _withheld(manifest: Manifest, sample: SourceSample) -> bool:
    """Whether it shows somebody who was forgotten while nobody could know that."""
    return any(
        manifest.pseudonym(one) in manifest.withheld for one in identities_of(sample.persons)
    )


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
