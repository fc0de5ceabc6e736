"""The limits of a key: requests per second (a token bucket), memory for bodies. Pure: the caller gives the time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cachetools import LRUCache

#: An idle key may burst this many seconds' worth of requests.
BURST_S = 2.0

#: Number of keys in memory. The key that was idle longest is dropped first; its bucket is full again by then.
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
        """Count a request and return 0, or return the seconds until there is a token for it."""
        size = max(1.0, rate_per_s * BURST_S)
        bucket = self._buckets.pop(key, None) or _Bucket(size, now)
        bucket.tokens = min(size, bucket.tokens + (now - bucket.at) * rate_per_s)
        bucket.at = now
        self._buckets[key] = bucket
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return 0.0
        return (1.0 - bucket.tokens) / rate_per_s


class HeldBytes:
    """The bytes that requests hold in memory, by key: at most `most` together.

    A key may hold as many as are free, so that there is always room for another key.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """The bytes of all keys together."""
        return self._held.total()

    def hold(self, key: str, more: int) -> bool:
        """Count more bytes (or fewer, if negative) and return True; return False if there is no room for them."""
        mine, free = self._held[key] + more, self._most - self._held.total() - more
        if more > 0 and mine > free:
            return False
        self._held[key] = mine
        if not mine:
            del self._held[key]
        return True
