"""Why a label: what each part of an input contributed to it. One shape for texts, images and rows of a table."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.kind import LabelScore

#: More steps than this explain nothing better.
MOST_STEPS = 512


class WordPart(msgspec.Struct, frozen=True):
    """A word, characters `start` to `end` of the text, and what it contributed."""

    text: str
    start: int
    end: int
    contribution: float


class ColumnPart(msgspec.Struct, frozen=True):
    """A column's value, and what it contributed."""

    column: str
    value: float | str | None
    contribution: float


class Area(msgspec.Struct, frozen=True):
    """Corners in pixels of the image as it was sent, upright."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class PixelMap(msgspec.Struct, frozen=True):
    """The part of the image that the model saw, and what each of the equal fields that it is divided into contributed: row by
    row from the top."""

    area: Area
    contributions: tuple[tuple[float, ...], ...]


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the input moved a label's log-odds, from `base`, where they are for the `baseline`, to `value`, and which part of it
    did how much of that: `words`, `columns` or a `map`. With more than two labels, it is the label's logit less the mean of the
    others'.

    All contributions add up to `value` less `base`, but for `delta`, by which they are too much: the error of so many `steps`.
    """

    method: str
    baseline: str
    value: float
    base: float
    steps: int = 0
    delta: float = 0.0
    words: tuple[WordPart, ...] = ()
    columns: tuple[ColumnPart, ...] = ()
    map: PixelMap | None = None


class ExplainedLabel(LabelScore, frozen=True, omit_defaults=True):
    """A label with its probability, and why, where that was asked for."""

    explanation: Explanation | None = None


ExplainedLabels = list[ExplainedLabel]


def check_steps(steps: int) -> None:
    """Raise ValueError, which msgspec turns into its ValidationError, for a number of steps that is of no use."""
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"`explain_steps` must be 1 to {MOST_STEPS}")
