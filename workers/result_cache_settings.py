"""Which results are kept for later jobs: the table ``[result_cache]`` of fleet.toml."""

from __future__ import annotations

import math

import msgspec


class ResultCacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tasks whose results are kept for `keep_s` and answer later items of the same tenant (none: no cache)."""

    tasks: tuple[str, ...] = ()
    keep_s: float = 30 * 86400.0

    def __post_init__(self) -> None:
        if not 0 < self.keep_s < math.inf:
            raise ValueError("`keep_s` must be over 0")
