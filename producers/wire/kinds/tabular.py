"""The kinds whose input is a row of a table: parameters and outputs."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.explanation import ExplainedLabels
from producers.wire.kinds.kind import Kind, NoParams, at_least


class TabularClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `top_k` best labels, best first (null: all). `explain` adds each column's contribution to each label."""

    top_k: int | None = 1
    explain: bool = False

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)


#: A number, or several by name.
Numbers = float | dict[str, float]


TABULAR_KINDS = (
    Kind(
        "tabular-classification",
        "row",
        TabularClassificationParams,
        ExplainedLabels,
        "labels for a row of a table, with calibrated probabilities, explained on demand",
    ),
    Kind("regression", "row", NoParams, Numbers, "a number for a row of a table, or several by name", strict=True),
)
