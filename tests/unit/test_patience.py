"""A submission of many waits politely for a full fleet: as advised, longer each time, and not for ever if so told."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from producers.client.sending.full_fleet import LONGEST_S, OverloadWait, checked
from producers.wire.errors import InvalidInput, Overloaded


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_waits_grow_up_to_a_bound_and_follow_advice() -> None:
    """An unknown end is asked for ever less often; a known one when it is due."""
    patience = OverloadWait()
    waits = [patience.wait_s(Overloaded("full")) for _ in range(12)]
    assert all(later > earlier * 1.5 for earlier, later in pairwise(waits[:6]))
    assert max(waits) <= LONGEST_S * 1.25
    assert OverloadWait().wait_s(Overloaded("full", retry_after_s=40.0)) >= 40.0


def test_patience_ends_before_the_limit_is_passed() -> None:
    """The refusal itself is what the caller hears of."""
    clock = Clock()
    patience = OverloadWait(10.0, clock)
    with pytest.raises(Overloaded, match="full"):  # noqa: PT012 - until it gives up
        for _ in range(100):
            clock.now_s += patience.wait_s(Overloaded("full"))
    assert 5.0 < clock.now_s <= 10.0
    with pytest.raises(Overloaded):
        OverloadWait(0.0).wait_s(Overloaded("full"))


def test_a_patience_is_a_time() -> None:
    """None is to wait on."""
    assert checked(None) == math.inf
    assert checked(0) == 0.0
    for wrong in (-1, "long", True, math.nan):
        with pytest.raises(InvalidInput, match="patience_s: must be 0 or more seconds"):
            checked(wrong)
