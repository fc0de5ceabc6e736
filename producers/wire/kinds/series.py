"""The kind whose input is a series: sensor measurements at equal intervals. Parameters and outputs."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.kind import Kind, Labels, at_least


class TimeSeriesClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best labels are returned, best first (null: all labels)."""

    top_k: int | None = 1

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)


SERIES_KINDS = (
    Kind(
        "time-series-classification",
        "series",
        TimeSeriesClassificationParams,
        Labels,
        "labels for a series of measurements, best first",
    ),
)
