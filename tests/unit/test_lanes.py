"""Turns between lanes: whoever waits gets its share of the envelopes by its weight, whatever the others have piled
up.
"""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from workers.node.lanes import LaneTurns


def take(turns: LaneTurns, waiting: dict[str, deque[int]]) -> str:
    """Do what Redis does with a BRPOP: take from the first list that holds anything."""
    queue = next(name for name in turns.consume(len(waiting)) if waiting[name])
    waiting[queue].popleft()
    turns.rotate(queue)
    return queue


def full(**counts: int) -> dict[str, deque[int]]:
    return {name: deque(range(count)) for name, count in counts.items()}


def turns_of(waiting: dict[str, deque[int]], weights: dict[str, float] | None = None) -> LaneTurns:
    turns = LaneTurns(lambda queue: (weights or {}).get(queue, 1.0))
    turns.update(waiting)
    return turns


def test_equal_lanes_alternate() -> None:
    """As kombu's own round robin has it."""
    waiting = full(a=3, b=3, c=3)
    turns = turns_of(waiting)
    assert [take(turns, waiting) for _ in range(9)] == ["a", "b", "c"] * 3


def test_a_lane_gets_its_weight() -> None:
    """A tenant that weighs three times as much gets three of four envelopes."""
    waiting = full(light=100, heavy=100)
    turns = turns_of(waiting, {"heavy": 3.0})
    assert Counter(take(turns, waiting) for _ in range(40)) == {"heavy": 30, "light": 10}


def test_who_comes_late_comes_next_and_has_saved_nothing() -> None:
    """A small submission behind a million waits for one envelope, and a long absence does not let it shut others
    out.
    """
    waiting = full(many=1_000, few=0)
    turns = turns_of(waiting)
    for _ in range(500):
        assert take(turns, waiting) == "many"
    waiting["few"].extend(range(10))
    assert [take(turns, waiting) for _ in range(6)] == ["few", "many"] * 3


@given(
    weights=st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6),
    arrivals=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=20),
)
def test_a_lane_that_always_has_something_gets_its_share(weights: list[float], arrivals: list[tuple[int, int]]) -> None:
    """In whatever bursts the others come: it lags its share of what is taken by less than one turn of each."""
    names = [f"lane {number}" for number in range(len(weights))]
    by_name = dict(zip(names, weights, strict=True))
    waiting = {name: deque[int]() for name in names}
    waiting[names[0]].extend(range(10_000))
    turns = turns_of(waiting, by_name)
    taken = Counter[str]()
    for place, burst in arrivals:
        waiting[names[place % len(names)]].extend(range(burst))
        for _ in range(25):
            taken[take(turns, waiting)] += 1
    for other in names[1:]:
        # what another has taken, in its own weight, is never more than a turn of each ahead
        ahead = taken[other] / by_name[other] - taken[names[0]] / by_name[names[0]]
        assert ahead <= 1 / by_name[other] + 1 / by_name[names[0]] + 1e-6
