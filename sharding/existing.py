"""What lies at an output already, and whether a plan may be written there."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.shards import (
    MANIFEST,
    QUARANTINE,
    Manifest,
    Shard,
    ShardFile,
    ShardSet,
    index_name,
    protocol_name,
    sha256,
)
from pipeline.stores.store import Location
from pipeline.written import WrittenIndex, read_indexes
from sharding.plan import Plan, differences, manifest_settings


def find_manifest(out: Location) -> Manifest | None:
    """None if there is none. Raises UserError if it is damaged: nothing else tells who is withheld."""
    data = out.child(MANIFEST).read_if_there()
    if data is None:
        return None
    try:
        return Manifest.from_json(data)
    except ValueError:
        return ShardSet(out.url).manifest  # says what is wrong with it


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


def first_shards(manifest: Manifest | None) -> list[Shard]:
    """Those of the first variant."""
    return [shard for shard in manifest.shards if shard.variant == 0] if manifest else []


def unlisted(out: Location, manifest: Manifest | None) -> list[str]:
    """Tars and indexes below `out` that the manifest does not name: what killed runs left."""
    listed = {file for shard in manifest.shards for file in shard.files} if manifest else set()
    return [file for file in out.list_files() if ShardFile.parse(file) and file not in listed]


def has_child_shards(out: Location) -> bool:
    """Whether `forget` wrote here."""
    files = map(ShardFile.parse, out.list_files())
    return any(file is not None and file.generation for file in files)


def _refuse_other_plan(out: Location, plan: Plan, written: WrittenIndex) -> None:
    if written.plan_hash != plan.hash:
        # Numbers of excluded samples decide nothing.
        old, new = ({**one, "excluded": None} for one in (written.plan, plan.description()))
        raise _another_plan(out, plan, list(differences(old, new)))


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
