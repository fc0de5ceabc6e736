"""The kind whose input is a row of a table: parameters and outputs."""

from __future__ import annotations

import msgspec

from producers.kinds.kind import Kind, LabelScore, at_least


class TabularClassificationParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k` labels are returned, best first (null: all of them). With `explain`, each says what spoke for and against it."""

    top_k: int | None = 1
    explain: bool = False

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k)


class Because(msgspec.Struct, frozen=True):
    """What one column's value adds to the log-odds of a label against the others, compared with an average row."""

    column: str
    value: float | str | None
    contribution: float


class ExplainedLabel(LabelScore, frozen=True, omit_defaults=True):
    """A label with its probability and, if asked for, every column's part in it, the weightiest first."""

    because: tuple[Because, ...] = ()


TABULAR_KINDS = (
    Kind(
        "tabular-classification",
        "row",
        TabularClassificationParams,
        list[ExplainedLabel],
        "labels for a row of a table, with calibrated probabilities, explained on demand",
    ),
)
