"""How fast each key may ask: a bucket of tokens a key, filled at its rate. Pure: the caller says what time it is."""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache

#: A key that was idle may make this many seconds' worth of requests at once.
BURST_S = 2.0

#: Keys remembered; the one that was idle longest is forgotten first, when its bucket is long full again.
KEYS = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Rates:
    """Counts requests by key."""

    def __init__(self) -> None:
        self._buckets: LRUCache[str, _Bucket] = LRUCache(KEYS)

    def take(self, key: str, rate_per_s: float, now: float) -> float:
        """Return 0 and count a request, or return in how many seconds there is room for it."""
        size = max(1.0, rate_per_s * BURST_S)
        bucket = self._buckets.pop(key, None) or _Bucket(size, now)
        bucket.tokens = min(size, bucket.tokens + (now - bucket.at) * rate_per_s)
        bucket.at = now
        self._buckets[key] = bucket
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return 0.0
        return (1.0 - bucket.tokens) / rate_per_s
