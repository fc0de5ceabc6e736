"""Choose the requests of the next step of a stepwise model. No clock, no threads: the waiting requests and the places.

The most urgent requests come first; among equals, the request with the fewest *turns* of `TURN_STEPS` steps, then the
earliest. So a short request does not wait for long ones: a long request makes room after its turn and continues later.
If there are several places, the last of them is kept for the longest wait, once this reaches `PATIENCE_STEPS`. So no
flood of urgent or short requests stops a request for ever: each of k waiting requests is served within
`PATIENCE_STEPS` + k·`TURN_STEPS` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

#: After this many steps, a request makes room for requests that have had fewer.
TURN_STEPS = 32

#: After this many steps without a place, a request may take the kept place.
PATIENCE_STEPS = 64


class Steppable(Protocol):
    """A request with the number of `steps` it was in and the number it has `waited` since.

    It holds the kept place while `steps` is under `kept_until`.
    """

    urgency: int
    number: int
    steps: int
    waited: int
    kept_until: int


S = TypeVar("S", bound=Steppable)


def choose(line: Sequence[S], places: int) -> list[S]:
    """Return the requests of the next step, at most `places`, and count the step in every request."""
    chosen = sorted(line, key=lambda each: (each.urgency, each.steps // TURN_STEPS, each.number))[:places]
    if len(line) > places > 1:
        chosen = _with_the_kept_place(line, chosen)
    inside = {each.number for each in chosen}
    for each in line:
        if each.number in inside:
            each.steps += 1
            each.waited = 0
        else:
            each.waited += 1
    return chosen


def _with_the_kept_place(line: Sequence[S], chosen: list[S]) -> list[S]:
    holder = next((each for each in line if each.steps < each.kept_until), None)
    if holder is None:
        holder = max(line, key=lambda each: (each.waited, -each.number))
        if holder.waited < PATIENCE_STEPS:
            return chosen
        holder.kept_until = holder.steps + TURN_STEPS
    return chosen if holder in chosen else [*chosen[:-1], holder]
