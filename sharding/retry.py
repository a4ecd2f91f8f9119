"""Another try for what a finished set had to quarantine: what can be used now goes into supplement shards.

The planned shards stay as they are, so the set no longer equals a fresh write; its manifest says so.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.shards import Manifest
from pipeline.store import Location
from sharding.datasets.base import Listing, SourceSample
from sharding.output import complete, find_manifest, find_supplements, read_quarantine
from sharding.plan import PLAN_VERSION, PlannedSample, ShardPlan, deciding_settings, differences
from sharding.prepare import conversion_of
from sharding.recipe import SetRequest
from sharding.writer import ShardJob

SUPPLEMENT_FILE = re.compile(r"shards/v\d+/(s\d{6})\.(?:tar|parquet)")


@dataclass(frozen=True)
class PreparedRetry:
    """Samples that were quarantined and that the source holds now."""

    request: SetRequest
    manifest: Manifest
    samples: tuple[SourceSample, ...]

    @property
    def name(self) -> str:
        return f"{self.manifest.dataset} {self.manifest.split}, quarantined"

    def jobs(self) -> Iterator[ShardJob]:
        """Shards with the next free names, as large as planned ones."""
        config = self.request.config
        reid = self.manifest.task == "reid"
        target = config.shard_crops if reid else config.shard_bytes
        number = self._next_number
        for part in _parts(self.samples, target, reid):
            planned = tuple(PlannedSample(sample, run) for run, sample in enumerate(part))
            yield ShardJob(
                conversion_of(self.request, self.manifest.variants),
                ShardPlan(f"s{number:06d}", planned),
                self.request.out,
                self.manifest.plan_hash,
                {"supplement": True},
                rescue=True,
            )
            number += 1

    def finish(self) -> Manifest:
        """Adds the supplements to the manifest."""
        out = Location(self.request.out)
        out.sweep()
        complete_now = find_supplements(out, self.manifest.variants)
        new = [name for name in complete_now if _number(name) >= self._next_number]
        _remove_others(out, {*self._names(supplement=True), *new})
        return complete(
            out,
            self.manifest,
            self._names(supplement=False),
            [*self._names(supplement=True), *new],
        )

    def _names(self, supplement: bool) -> list[str]:
        shards = (shard for shard in self.manifest.shards if shard.variant == 0)
        return [shard.name for shard in shards if shard.supplement == supplement]

    @property
    def _next_number(self) -> int:
        """By the manifest: what a killed try wrote is written again."""
        return max(map(_number, self._names(supplement=True)), default=-1) + 1


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
    wanted = set(read_quarantine(out)["key"].to_pylist()) - {None}
    samples = {sample.key: sample for sample in listing.samples if sample.key in wanted}
    return PreparedRetry(request, manifest, tuple(samples[key] for key in sorted(samples)))


def _refuse_changes(request: SetRequest, manifest: Manifest, listing: Listing) -> None:
    settings = {
        "plan_version": PLAN_VERSION,
        **deciding_settings(request.config, request.adapter.task),
    }
    changed = list(differences(dict(manifest.settings), settings, "settings."))
    if listing.total != manifest.source_samples:
        changed.append(f"samples in the source: {manifest.source_samples} -> {listing.total}")
    if changed:
        raise UserError(
            f"{request.out} was made otherwise ({'; '.join(changed)}): quarantined samples can be tried "
            "again with the same settings and release only."
        )


def _number(supplement: str) -> int:
    """Of `s000003`, or of `s000003-g1`, which `forget` made of it."""
    return int(supplement[1:].split("-")[0])


def _remove_others(out: Location, supplements: set[str]) -> None:
    """What a killed try left incomplete: its samples are still quarantined."""
    for file in out.list_files():
        match = SUPPLEMENT_FILE.fullmatch(file)
        if match and match[1] not in supplements:
            out.child(file).remove()


def _parts(
    samples: tuple[SourceSample, ...], target: int, reid: bool
) -> Iterator[list[SourceSample]]:
    part: list[SourceSample] = []
    weight = 0
    for sample in samples:
        part.append(sample)
        weight += 1 if reid else sample.size_bytes
        if weight >= target:
            yield part
            part, weight = [], 0
    if part:
        yield part
