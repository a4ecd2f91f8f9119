"""A process that reads shards through a node's cache: `cache_worker.py FOLDER LIMIT_GB URL=SIZE=SHA256 ...`.

Checks each, prints its counters as JSON, and ends with its standard input.
"""

import hashlib
import json
import os
import sys

from pipeline.shards import Shard
from pipeline.stores.node_cache import CacheConfig, NodeCache
from pipeline.stores.read_stats import ReadStats
from pipeline.stores.store import Location


def shard_of(size: int, sha256: str) -> Shard:
    """As far as a cache looks at it."""
    return Shard(
        name="000000",
        variant=0,
        tar_bytes=size,
        tar_sha256=sha256,
        index_sha256="",
        planned=1,
        ok=1,
        quarantined=0,
    )


def main(folder: str, limit_gb: str, *wanted: str) -> None:
    cache, stats = NodeCache(CacheConfig(folder=folder, limit_gb=float(limit_gb))), ReadStats()
    for one in wanted:
        url, size, sha256 = one.split("=")
        with open(cache.open(Location(url), shard_of(int(size), sha256), stats), "rb") as file:
            assert hashlib.sha256(os.pread(file.fileno(), int(size) + 1, 0)).hexdigest() == sha256
    print(json.dumps({"fetched": stats.bytes_fetched, "misses": stats.cache_misses}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
