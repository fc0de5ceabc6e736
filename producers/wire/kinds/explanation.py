"""Explanations: the contribution of each part of an input to a label. One shape for texts, images and table rows."""

from __future__ import annotations

import msgspec

from producers.wire.kinds.kind import LabelScore

#: More steps than this do not make an explanation better.
MOST_STEPS = 512


class WordPart(msgspec.Struct, frozen=True):
    """A word at characters `start` to `end` of the text, and its contribution."""

    text: str
    start: int
    end: int
    contribution: float


class ColumnPart(msgspec.Struct, frozen=True):
    """A column's value and its contribution."""

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
    """The area that the model saw, and the contribution of each of its equal fields, row by row from the top."""

    area: Area
    contributions: tuple[tuple[float, ...], ...]


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far each part of the input moved a label's log-odds.

    `base` is the log-odds for the `baseline`, `value` those for the input. With more than two labels, the label's logit
    less the mean of the others takes the place of the log-odds. The contributions are in `words`, `columns` or `map`.

    The contributions add up to `value` - `base` + `delta`. `delta` is the numeric error of so many `steps`.
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
    """A label with its probability and, if requested, its explanation."""

    explanation: Explanation | None = None


ExplainedLabels = list[ExplainedLabel]


def check_steps(steps: int) -> None:
    """Raise ValueError, which msgspec turns into its ValidationError, for a useless number of steps."""
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"`explain_steps` must be 1 to {MOST_STEPS}")
