"""What reading cost: bytes and openings, counted by all threads that read a shard set."""

from dataclasses import dataclass, field
from threading import Lock


@dataclass
class ReadStats:
    bytes_read: int = 0
    """Handed out to whoever decodes."""
    bytes_fetched: int = 0
    """Of tars, from a store; indexes and manifests are not counted."""
    cache_hits: int = 0
    """Shards that the node's cache had when they were opened."""
    cache_misses: int = 0
    """Shards that this process brought there."""
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def add(self, read: int = 0, fetched: int = 0, hits: int = 0, misses: int = 0) -> None:
        with self._lock:
            self.bytes_read += read
            self.bytes_fetched += fetched
            self.cache_hits += hits
            self.cache_misses += misses
