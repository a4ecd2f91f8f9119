"""A shard set at a URL: names, the index schema, the manifest. The contract of writer and reader.

shards/v0/000000.tar       <key>.jpg|png + <key>.json; further variants v1, v2 ...: same keys, same plan
shards/v0/000000.parquet   a row for every planned sample; written after the tar, marks it done
protocols/NAME.parquet     queries, galleries and positives of a person-search set
quarantine.parquet         the quarantined rows of all shards that no supplement holds
manifest.json              written last, with a digest of itself
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from pipeline.annotation import Annotation, Task
from pipeline.errors import UserError
from pipeline.foreign.fields import FieldMap
from pipeline.stores.store import Location

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.parquet"

DIGEST_ENTRY = b',\n "digest": "'

OK, QUARANTINED, FORGOTTEN = "ok", "quarantined", "forgotten"

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),  # ok | quarantined | forgotten
        ("reason", pa.string()),  # why quarantined, else null
        ("origin", pa.string()),  # the source's full name for the sample
        ("run", pa.int32()),  # rows of one run hold one identity and stay together in the stream
        ("image_type", pa.string()),  # jpg | png: the member's extension
        ("image_offset", pa.int64()),  # of the member's bytes in the tar; null unless ok
        ("image_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("source_sha256", pa.string()),  # of the source's bytes, before anything was stripped
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("persons", pa.int32()),  # not ignored
        ("ignored", pa.int32()),
        ("identities", pa.list_(pa.string())),
    ]
)
"""Columns of a shard's index. Schema metadata adds `plan_hash`, `tar_bytes` and `tar_sha256`."""

PROTOCOL_SCHEMA = pa.schema(
    [
        ("query", pa.string()),  # its name, unique in the protocol
        ("key", pa.string()),  # of the sample of this set that shows the person asked for
        (
            "box",
            pa.list_(pa.float64(), 4),
        ),  # that person there: xyxy, as far out as the source says
        ("identity", pa.string()),  # `namespace:raw`
        # Keys of the samples to search; null: all of the set but the query's own.
        ("gallery", pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        # Where the protocol itself says that the person is; null: wherever the identity is annotated.
        (
            "positives",
            pa.list_(pa.struct([("key", pa.string()), ("box", pa.list_(pa.float64(), 4))])),
        ),
    ]
)
"""Columns of `protocols/NAME.parquet`, a row a query. Regions to ignore lie in the samples' annotations."""


SHARD_FILE = re.compile(r"shards/v(\d+)/((s?\d{6,})(?:-g(\d+))?)\.(?:tar|parquet)")


class ShardFile(NamedTuple):
    """What the name of a tar or an index says."""

    variant: int
    shard: str
    """`000003`; `s000003` a supplement; `000003-g2` what generation 2 left of it."""
    first: str
    """The shard's name when it was written first."""
    generation: int

    @property
    def supplement(self) -> bool:
        return self.first.startswith("s")

    @classmethod
    def parse(cls, name: str) -> "ShardFile | None":
        """None if it is not one."""
        match = SHARD_FILE.fullmatch(name)
        return match and cls(int(match[1]), match[2], match[3], int(match[4] or 0))


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@validated_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Shard:
    """One tar of one variant. With slots: a manifest of 100,000 shards is read by every rank."""

    name: str
    """`000000`, the same in all variants."""
    variant: int
    tar_bytes: int
    tar_sha256: str
    index_sha256: str
    planned: int
    ok: int
    quarantined: int
    forgotten: int = 0
    supplement: bool = False
    """Holds samples that were quarantined in a planned shard and could be read on a later try."""
    tar: str = ""
    """Where another tool's tar lies: below the set, or the URL of one that lies elsewhere."""

    @property
    def files(self) -> tuple[str, str]:
        """Its tar and its index."""
        return tar_name(self.variant, self.name), index_name(self.variant, self.name)

    @property
    def slots(self) -> int:
        """Places in the stream's order: forgetting a sample must not move the others."""
        return self.ok + self.forgotten


class CountCheck(_Record):
    """A published figure against the one found in the source."""

    what: str
    published: int
    found: int
    evidence: str
    """`V` verified on real files, `S` read in a source, `R` remembered: facts of the dataset's page."""


class Manifest(_Record):
    version: Literal[1] = 1
    dataset: str
    domain: str
    split: str
    task: Task
    shards: tuple[Shard, ...]
    variants: int = 1
    samples: int
    """Samples in shards (one variant's), without quarantined ones."""
    quarantined: int
    """Those that no supplement holds: the rows of quarantine.parquet."""
    forgotten: int = 0
    withheld: tuple[str, ...] = ()
    """Of forgotten identities that a quarantined sample may show once it can be read: their `pseudonym`."""
    excluded: dict[str, int] = {}
    """Source samples left out on purpose, by rule."""
    source_samples: int
    """Samples that the source named: in shards, quarantined, forgotten and excluded ones together."""
    persons: int
    ignored: int
    identities: tuple[str, ...] = ()
    counts: tuple[CountCheck, ...] = ()
    settings: dict[str, JsonValue] = {}
    """All that decides the bytes: canvas, grouping, shard size, seed, check."""
    plan_hash: str
    source_plan: str | None = None
    """Hash of the plan that the source gave at the last retry, if another than `plan_hash`: such a source
    needs not be written again either.
    """
    licence: str
    homepage: str = ""
    """Where the release comes from."""
    quarantine_sha256: str = ""
    protocols: dict[str, str] = {}
    """sha256 of `protocols/NAME.parquet`, by name."""
    foreign: bool = False
    """Its tars were not written with it but indexed as they were: they may hold more than the index names."""
    fields: FieldMap | None = None
    """How the JSON in the tars is read, if it is not our annotation."""
    generation: int = 0
    parent: str | None = None
    """sha256 of the manifest that this generation was made from."""
    root: str | None = None
    """sha256 of the first manifest with these slots, if it is another than this."""

    def pseudonym(self, identity: str) -> str:
        """sha256 of an identity, with a salt of this set."""
        return sha256(f"{self.plan_hash} {identity}".encode())

    def annotation(self, data: bytes, key: str, size: tuple[int, int]) -> Annotation:
        """A sample's JSON, with its image's height and width. Raises ValueError."""
        if self.fields is None:
            return Annotation.from_json(data)
        return self.fields.annotate(
            data,
            key=key,
            size=size,
            dataset=self.dataset,
            domain=self.domain,
            split=self.split,
            task=self.task,
        )

    def to_json(self) -> bytes:
        """Its last entry is `digest`, the sha256 of all bytes before it."""
        body = self.model_dump_json(indent=1).removesuffix("\n}").encode()
        return body + _digest_entry(body)

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Raises ValueError if a byte is not as `to_json` wrote it, or (pydantic's) on another version."""
        end = max(0, data.rfind(DIGEST_ENTRY))
        body = memoryview(data)[:end]  # a manifest of many shards is tens of megabytes: no copies
        if data[end:] != _digest_entry(body):
            raise ValueError("its content is not the one that its digest was made of")
        return cls.model_validate_json(b"".join((body, b"\n}")))


class DamagedManifest(UserError):
    """A manifest is there, and not as it was written."""


@dataclass(frozen=True)
class ShardSet:
    """A finished shard set. Raises UserError if there is none at `url`, or a foreign one."""

    url: str

    @cached_property
    def location(self) -> Location:
        return Location(self.url)

    @property
    def manifest(self) -> Manifest:
        return self._loaded[0]

    @property
    def manifest_sha256(self) -> str:
        return self._loaded[1]

    @property
    def root_sha256(self) -> str:
        """Of the first manifest with these slots: the same for all generations that `forget` made of it, and
        for a retry that added nothing.
        """
        return self.manifest.root or self.manifest_sha256

    @cached_property
    def _loaded(self) -> tuple[Manifest, str]:
        data = self._read_manifest()
        try:
            return Manifest.from_json(data), sha256(data)
        except ValidationError as error:
            raise UserError(
                f"{self.url}/{MANIFEST} is not a manifest of this version: {error.errors()[0]['msg']}. Use "
                "the code that wrote it, or write the set anew."
            ) from None
        except ValueError as error:
            raise DamagedManifest(
                f"{self.url}/{MANIFEST} is damaged or was edited: {error}. Bring the file back as it was "
                "written. If that cannot be, remove what the sharding job wrote there and run it again; who "
                "was forgotten comes back with that: leave them out, by filters.exclude_keys. (Of another "
                "tool's tars it is made again by `python -m pipeline index`.)"
            ) from None

    def _read_manifest(self) -> bytes:
        try:
            return self.location.child(MANIFEST).read()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"no shard set at {self.url}: {MANIFEST} is missing. It is written last, so the sharding "
                "job has not finished there (run it again, it continues) or the URL is wrong."
            ) from None
        except PermissionError as error:
            raise UserError(
                f"not allowed to read {self.url}/{MANIFEST} ({error}). Check the credentials of this process "
                "and the rights they give."
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot reach {self.url} ({error}). Check the URL, the network and the store's settings."
            ) from None

    def shards(self, variant: int = 0) -> list[Shard]:
        return [shard for shard in self.manifest.shards if shard.variant == variant]

    def tar(self, shard: Shard) -> Location:
        if "://" in shard.tar or shard.tar.startswith("/"):
            return Location(shard.tar)
        return self.location.child(shard.tar or tar_name(shard.variant, shard.name))

    def index(self, shard: Shard) -> pa.Table:
        """The shard's index; raises UserError if it is not the one that the manifest names."""
        location = self.location.child(index_name(shard.variant, shard.name))
        data = location.read()
        if sha256(data) != shard.index_sha256:
            raise UserError(
                f"{location.url} is not the index that {MANIFEST} names: `python -m sharding verify "
                f"{self.url}` tells what else is wrong."
            )
        return read_parquet(data)

    def protocol(self, name: str) -> pa.Table:
        """Raises UserError if the set has none of this name, or another than its manifest names."""
        if name not in self.manifest.protocols:
            known = (
                ", ".join(self.manifest.protocols) or "none: it is no test split of a search set"
            )
            raise UserError(f"{self.url} has no protocol `{name}`; it has {known}.")
        location = self.location.child(protocol_name(name))
        with location.needed():
            data = location.read()
        if sha256(data) != self.manifest.protocols[name]:
            raise UserError(f"{location.url} is not the protocol that {MANIFEST} names.")
        return read_parquet(data)

    def quarantine(self) -> dict[str, str]:
        """By key, why a sample of the source is in no shard. Raises UserError if that cannot be told."""
        if not self.manifest.quarantined:
            return {}
        location = self.location.child(QUARANTINE)
        with location.needed():
            data = location.read()
        if sha256(data) != self.manifest.quarantine_sha256:
            raise UserError(
                f"{location.url} is not the list that {MANIFEST} names: the sharding job may have been "
                "killed as it wrote it. Run it again."
            )
        table = read_parquet(data)
        return dict(zip(table["key"].to_pylist(), table["reason"].to_pylist()))


def tar_name(variant: int, shard: str) -> str:
    return f"shards/v{variant}/{shard}.tar"


def index_name(variant: int, shard: str) -> str:
    return f"shards/v{variant}/{shard}.parquet"


def protocol_name(protocol: str) -> str:
    return f"protocols/{protocol}.parquet"


def read_parquet(data: bytes) -> pa.Table:
    """A table with its metadata. Raises OSError or pyarrow's errors on damage.

    In this thread: the scanner behind `pyarrow.parquet.read_table` may let go of `data` when the
    interpreter has ended, which aborts a process that was done.
    """
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    return file.read(use_threads=False)


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _digest_entry(body: bytes | memoryview) -> bytes:
    return DIGEST_ENTRY + sha256(body).encode() + b'"\n}\n'


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
