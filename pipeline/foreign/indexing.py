"""Tars of other tools become a shard set where they lie: each gets an index, all of them a manifest.

A tar's index is written when the tar was read through, so a run that was killed goes on where it was. Tars
are numbered by their names: in a folder that has grown, those after a new one are read again with it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from pipeline.accounting import Account, account_shard, add_up
from pipeline.errors import UserError
from pipeline.foreign.reader import ForeignTar
from pipeline.foreign.tar_index import MADE_BY, Labels, TarPlace, index_tar
from pipeline.shards import (
    MANIFEST,
    QUARANTINE,
    QUARANTINED,
    DamagedManifest,
    Manifest,
    Shard,
    ShardFile,
    ShardSet,
    index_name,
    parquet_bytes,
    sha256,
)
from pipeline.stores.store import Location
from pipeline.written import WrittenIndex, read_index, read_indexes

ALLOWED_BAD = 20
"""Bad samples that stop nothing, whatever their share."""
SHOWN = 3
ALONE_BYTES = 2 << 30
"""Processes take longer to start than threads, of which one at a time parses headers, take to index this."""


@dataclass
class Tally:
    """What was found in the tars read so far."""

    samples: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why samples were quarantined."""
    others: Counter[str] = field(default_factory=Counter)
    """Members that are left alone, by extension."""
    tars: int = 0
    tars_kept: int = 0
    """Of them, indexed by an earlier run."""

    @property
    def bad(self) -> int:
        return self.reasons.total()

    @classmethod
    def of(cls, written: WrittenIndex, kept: bool) -> "Tally":
        bad = written.table.filter(pc.equal(written.table["status"], QUARANTINED))
        reasons = Counter(bad["reason"].to_pylist())
        return cls(len(written.table), reasons, Counter(written.others), 1, int(kept))

    def add(self, other: "Tally") -> None:
        self.samples += other.samples
        self.reasons += other.reasons
        self.others += other.others
        self.tars += other.tars
        self.tars_kept += other.tars_kept

    def shown(self) -> str:
        return _shown([f"{count:,} {reason}" for reason, count in self.reasons.most_common()])


def index_set(
    url: str, out: str, labels: Labels, most_bad: float, workers: int
) -> tuple[Manifest, Tally]:
    """Indexes the tars below `url` into a shard set at `out`, which may be the same place.

    Raises UserError if there is none, one cannot be read, more than `most_bad` of the samples (and more
    than a few) cannot be used, or another shard set lies at `out`.
    """
    target = Location(out.rstrip("/"))
    places = list(_find_tars(Location(url.rstrip("/")), target))
    _check_target(target, labels)
    with target.exclusive():
        tally = _index_all(places, target, labels, most_bad, workers)
        return _finish(places, target, labels), tally


def _find_tars(source: Location, target: Location) -> Iterator[TarPlace]:
    """Tars in their names' order. Raises UserError if there is none, or they are mixed with shards."""
    sizes = source.file_sizes()
    tars = sorted(name for name in sizes if name.endswith(".tar"))
    if not tars:
        raise UserError(
            f"no .tar below {source.url}. Look at the URL; and decompress tars first: a sample's place in a "
            ".tar.gz says nothing."
        )
    shards = [ShardFile.parse(name) for name in tars]
    if not any(shards):
        for number, name in enumerate(tars):
            location = source.child(name)
            yield TarPlace(
                name, location, sizes[name], _named(location, target), f"{number:06d}", 0
            )
        return
    for name, shard in zip(tars, shards, strict=True):
        if shard is None or shard.generation or source.url != target.url:
            raise UserError(
                f"{source.url}/{name}: tars of a shard set are indexed where they lie, without others beside "
                "them, and not if `forget` wrote some of them. Name the folder of one kind."
            )
        yield TarPlace(name, source.child(name), sizes[name], "", shard.shard, shard.variant)


def _named(tar: Location, target: Location) -> str:
    """`Shard.tar`: relative if the tar lies below the set, so that both can be moved together."""
    if tar.url.startswith(f"{target.url}/"):
        return tar.url.removeprefix(f"{target.url}/")
    return os.path.abspath(tar.path) if tar.is_local else tar.url


def _check_target(target: Location, labels: Labels) -> None:
    if not target.child(MANIFEST).is_file():
        return
    try:
        there = ShardSet(target.url).manifest
    except DamagedManifest:
        return
    if there.plan_hash != labels.plan_hash:
        raise UserError(
            f"a finished shard set lies at {target.url}, made with other settings. Remove its {MANIFEST} to "
            "index these tars anew, or name another place with --out."
        )


def _index_all(
    places: list[TarPlace], target: Location, labels: Labels, most_bad: float, workers: int
) -> Tally:
    tally, broken = Tally(), []
    with _pool(sum(place.size for place in places), workers) as pool:
        tasks = {pool.submit(_index_one, place, target, labels): place for place in places}
        try:
            for done in tqdm(as_completed(tasks), "tars", len(tasks), disable=None):
                try:
                    tally.add(done.result())
                except (ForeignTar, OSError) as error:
                    broken.append(f"{tasks[done].location.url} ({error})")
                except BrokenProcessPool:
                    raise UserError(
                        "a process that indexed tars was killed, for its memory perhaps. What was done "
                        "stays: run this again with fewer --workers."
                    ) from None
                _check_bad(tally, most_bad, labels)
        finally:
            pool.shutdown(cancel_futures=True)
    if broken:
        raise UserError(
            f"{len(broken):,} of {len(places):,} tars cannot be indexed: {_shown(sorted(broken))}. The "
            "others are done. Mend these or move them away, and run this again."
        )
    return tally


def _pool(size: int, workers: int) -> Executor:
    if workers == 1 or size < ALONE_BYTES:
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, get_context("spawn"))


def _index_one(place: TarPlace, target: Location, labels: Labels) -> Tally:
    """Writes the tar's index unless it is there already."""
    name = index_name(place.variant, place.shard)
    location = target.child(name)
    before = read_index(location)
    if before is not None:
        if before.plan.get("made_by") != MADE_BY:
            raise UserError(
                f"{location.url} was written by the sharding job. Run that again: it finishes its set and "
                "knows more of it than can be read from the tars."
            )
        same = (before.plan_hash, before.tar_bytes, before.tar)
        if same == (labels.plan_hash, place.size, place.tar):
            return Tally.of(before, kept=True)
    index_tar(labels, place, target)
    return Tally.of(_checked(target, name, read_index(location), labels), kept=False)


def _checked(
    target: Location, name: str, written: WrittenIndex | None, labels: Labels
) -> WrittenIndex:
    if written is None or written.plan_hash != labels.plan_hash:
        raise UserError(f"{target.url}/{name} vanished or was replaced meanwhile: run this again.")
    return written


def _check_bad(tally: Tally, most_bad: float, labels: Labels) -> None:
    if tally.bad <= max(ALLOWED_BAD, most_bad * tally.samples):
        return
    hint = (
        "If their JSON is another tool's, say where it names people: --boxes FIELD, or --whole-image."
        if labels.fields is None
        else "Look whether --boxes, --box-format and --identity fit the JSON."
    )
    raise UserError(
        f"{tally.bad:,} of the first {tally.samples:,} samples cannot be used: {tally.shown()}. {hint} "
        "--max-bad allows more."
    )


def _finish(places: list[TarPlace], target: Location, labels: Labels) -> Manifest:
    """Writes quarantine and manifest, and removes indexes of tars that have gone."""
    target.sweep()
    names = {index_name(place.variant, place.shard): place for place in places}
    shards: list[Shard] = []
    accounts, keys = [], {}
    for name, found in read_indexes(target, names):
        written, place = _checked(target, name, found, labels), names[name]
        shards.append(written.shard(place.shard, place.variant))
        keys[place.variant, place.shard] = written.table.select(["key", "status", "run"])
        if place.variant == 0:
            accounts.append(account_shard(shards[-1], written.table))
    _check_keys(target, keys)
    account = add_up(accounts)
    manifest = _manifest(labels, shards, account, target)
    target.child(MANIFEST).write(manifest.to_json())
    for name in target.list_files():
        if name.endswith(".parquet") and ShardFile.parse(name) and name not in names:
            target.child(name).remove()
    return manifest


def _check_keys(target: Location, keys: dict[tuple[int, str], pa.Table]) -> None:
    """Raises UserError if two tars hold one sample, or the variants hold different ones."""
    first = {shard: table for (variant, shard), table in keys.items() if variant == 0}
    for (variant, shard), table in keys.items():
        if shard not in first or not table.equals(first[shard]):
            raise UserError(
                f"{target.url}: {shard} holds other usable samples in variant {variant} than in variant 0. "
                "Move the folders of the variants that differ away."
            )
    counts = pc.value_counts(
        pa.chunked_array([one["key"].combine_chunks() for one in first.values()])
    )
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if repeated:
        raise UserError(
            f"{target.url}: {len(repeated):,} samples are in several tars: {_shown(repeated)}. Move the tars "
            "that came twice away."
        )


def _manifest(labels: Labels, shards: list[Shard], account: Account, target: Location) -> Manifest:
    listed = parquet_bytes(account.quarantine)
    target.child(QUARANTINE).write(listed)
    if not account.samples:
        reasons = Counter(account.quarantine["reason"].to_pylist())
        raise UserError(
            f"{labels.dataset} {labels.split}: not one sample can be used: {Tally(reasons=reasons).shown()}."
        )
    return labels.manifest().model_copy(
        update={
            **account.claims(),
            "shards": tuple(shards),
            "variants": 1 + max(shard.variant for shard in shards),
            "source_samples": account.samples + account.quarantined,
            "quarantine_sha256": sha256(listed),
        }
    )


def _shown(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
