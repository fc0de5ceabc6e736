"""Find the threshold of a cascade task from rows that site and centre have answered. Pure: no I/O.

A row under the threshold has the centre's answer, any other the site's. For each threshold this gives the share that is
sent on, and the accuracy. The threshold is chosen on one half of the rows and judged on the other: on its own rows it
would look better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from producers.wire.errors import ArgosyError

#: Fewer rows say nothing of a threshold.
LEAST_ROWS = 20


class Unreachable(ArgosyError):
    """No threshold gives the wanted accuracy or share on these rows."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A row: the site's confidence (0 to 1), and whether each answer is right."""

    confidence: float
    site_right: bool
    centre_right: bool


@dataclass(frozen=True, slots=True)
class Point:
    """A threshold with its share of rows sent on and its accuracy, both 0 to 1."""

    threshold: float
    share: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold as it was chosen, the same on the other `rows` (`held_out`), and the answers of each side alone."""

    chosen: Point
    held_out: Point
    site_alone: float
    centre_alone: float
    rows: int


def judged_by(threshold: float, rows: Sequence[Judged]) -> Point:
    """Return the share and the accuracy of rows with a threshold."""
    sent = [row.confidence < threshold for row in rows]
    right = sum(row.centre_right if on else row.site_right for row, on in zip(rows, sent, strict=True))
    return Point(threshold, sum(sent) / len(rows), right / len(rows))


def points(rows: Sequence[Judged]) -> list[Point]:
    """Return a point for each threshold that divides the rows differently, from none sent on to as many as can be."""
    ordered = sorted(rows, key=lambda row: row.confidence)
    right = sum(row.site_right for row in ordered)
    found = [Point(0.0, 0.0, right / len(ordered))]
    for number, row in enumerate(ordered, 1):
        right += row.centre_right - row.site_right
        following = ordered[number].confidence if number < len(ordered) else math.nextafter(row.confidence, math.inf)
        if following > row.confidence and following <= 1:
            found.append(Point(following, number / len(ordered), right / len(ordered)))
    return found


def calibrate(rows: Sequence[Judged], *, accuracy: float | None = None, share: float | None = None) -> Calibration:
    """Return the threshold that sends on least for a wanted accuracy, or is most accurate for a wanted share.

    Raises Unreachable, which names the best that can be had.
    """
    if len(rows) < LEAST_ROWS:
        raise Unreachable(f"{len(rows)} rows with both answers are too few; give at least {LEAST_ROWS}")
    choosing, judging = rows[::2], rows[1::2]
    there = points(choosing)
    if accuracy is not None:
        reaching = [point for point in there if point.accuracy >= accuracy]
        if not reaching:
            best = max(there, key=lambda point: (point.accuracy, -point.share))
            raise Unreachable(
                f"no threshold reaches {accuracy:.1%}: the best is {best.accuracy:.1%}, "
                f"with {best.share:.1%} sent on; want less, or serve a better model"
            )
        chosen = min(reaching, key=lambda point: point.share)
    else:
        most = 1.0 if share is None else share
        chosen = max((p for p in there if p.share <= most), key=lambda point: (point.accuracy, -point.share))
    return Calibration(
        chosen,
        judged_by(chosen.threshold, judging),
        sum(row.site_right for row in judging) / len(judging),
        sum(row.centre_right for row in judging) / len(judging),
        len(judging),
    )
