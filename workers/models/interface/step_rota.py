"""Which of the requests at the device are in the next step. Pure: what waits, and how many places there are.

The more urgent go first; among equals, who has had fewer *turns* of `TURN_STEPS` steps, then who came first. So a short request
is not kept waiting by long ones: they make room after their turn, and go on later where they were. One place, where there
are several, goes to whoever has waited longest once that is `PATIENCE_STEPS`: so no flood of urgent or of short
ones stops anybody for ever; k that wait are each served in at most `PATIENCE_STEPS` + k·`TURN_STEPS` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

#: A request that has been in so many steps gives way to one that was in fewer.
TURN_STEPS = 32

#: After so many steps without a place, a request may have the one that is kept for those.
PATIENCE_STEPS = 64


class Stands(Protocol):
    """Whoever stands in line: `steps` is how many it was in, `waited` how many went by since; the kept place is its own as long as
    `steps` is under `kept_until`."""

    urgency: int
    number: int
    steps: int
    waited: int
    kept_until: int


S = TypeVar("S", bound=Stands)


def choose(line: Sequence[S], places: int) -> list[S]:
    """Return who is in the next step, at most `places` of them, and note it with each."""
    chosen = sorted(line, key=lambda one: (one.urgency, one.steps // TURN_STEPS, one.number))[:places]
    if len(line) > places > 1:
        chosen = _with_the_kept_place(line, chosen)
    inside = {one.number for one in chosen}
    for one in line:
        if one.number in inside:
            one.steps += 1
            one.waited = 0
        else:
            one.waited += 1
    return chosen


def _with_the_kept_place(line: Sequence[S], chosen: list[S]) -> list[S]:
    holder = next((one for one in line if one.steps < one.kept_until), None)
    if holder is None:
        holder = max(line, key=lambda one: (one.waited, -one.number))
        if holder.waited < PATIENCE_STEPS:
            return chosen
        holder.kept_until = holder.steps + TURN_STEPS
    return chosen if holder in chosen else [*chosen[:-1], holder]
