"""The feature cache's bounds. That the answers stay the same is tested with the real model."""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.models.built_in.multitask.feature_cache import FeatureCache


def row(size_bytes: int) -> Any:
    return {"pooled": np.zeros(size_bytes, dtype=np.uint8)}


def test_what_was_used_longest_ago_goes_first() -> None:
    """Bounded in bytes, whatever the number."""
    cache = FeatureCache(100)
    for name in (b"a", b"b", b"c"):
        cache.put(name, row(40))
        cache.get(b"a")
    assert [name for name in (b"a", b"b", b"c") if cache.get(name)] == [b"a", b"c"]
    assert cache.size_bytes == 80


def test_a_row_larger_than_the_cache_is_not_kept() -> None:
    """It would push everything out, and itself as well."""
    cache = FeatureCache(100)
    cache.put(b"small", row(40))
    cache.put(b"large", row(101))
    assert cache.get(b"small") is not None
    assert len(cache) == 1


def test_the_same_content_is_kept_once() -> None:
    """Twice in a batch, or computed again by another worker's request."""
    cache = FeatureCache(100)
    cache.put(b"a", row(40))
    cache.put(b"a", row(40))
    assert cache.size_bytes == 40
