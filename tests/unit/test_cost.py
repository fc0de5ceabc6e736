"""The learned cost model."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.batching.cost import CostModel


def taught(fixed: float, rate: float, count: int = 200, noise: float = 0.05) -> CostModel:
    random = Random(1)
    costs = CostModel()
    for _ in range(count):
        padded = random.randint(50, 4000)
        costs.observe("text", padded, (fixed + rate * padded) * random.uniform(1 - noise, 1 + noise))
    return costs


@given(st.floats(0, 0.01), st.floats(1e-5, 1e-3))
def test_it_finds_the_line_that_made_the_observations(fixed, rate):
    """Within a tenth, under noise of a twentieth."""
    costs = taught(fixed, rate)
    assert costs.seconds("text", 2000) == pytest.approx(fixed + rate * 2000, rel=0.1)
    largest = costs.largest("text", 1.0)
    assert largest is not None
    assert costs.seconds("text", largest) == pytest.approx(1.0, rel=0.01)


def test_a_short_promise_never_buys_mostly_overhead():
    """With 20 ms a pass however small it is, batches of 25 ms would waste most of the device."""
    costs = taught(0.02, 1e-4, noise=0.0)
    shortest = costs.largest("text", 0.001)
    assert shortest is not None
    assert 0.02 / costs.seconds("text", shortest) == pytest.approx(0.2, rel=0.01)


def test_it_says_nothing_before_it_knows():
    """A guess from a batch or two would shrink the first real ones for nothing."""
    costs = CostModel()
    assert costs.seconds("text", 100) is None
    costs.observe("text", 100, 1.0)
    assert costs.largest("text", 1.0) is None


def test_equal_batches_teach_their_mean():
    """Without any spread there is no slope to fit; proportion is the best guess."""
    costs = CostModel()
    for _ in range(20):
        costs.observe("text", 500, 0.1)
    assert costs.seconds("text", 1000) == pytest.approx(0.2)


def test_it_follows_a_machine_that_becomes_slower():
    """What was learned first must fade."""
    costs = taught(0.001, 1e-4)
    for _ in range(300):
        costs.observe("text", 1000, 0.3)
        costs.observe("text", 2000, 0.6)
    assert costs.seconds("text", 1500) == pytest.approx(0.45, rel=0.1)


def test_what_was_learned_can_be_kept():
    """As JSON, from one run to the next."""
    costs = taught(0.002, 1e-4)
    again = CostModel(json.loads(json.dumps(costs.learned())))
    assert again.seconds("text", 700) == costs.seconds("text", 700)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 10)), min_size=5, max_size=50))
def test_predictions_are_never_negative_and_grow_with_the_batch(observations):
    """Whatever it saw, a larger batch is never predicted to be shorter."""
    costs = CostModel()
    for padded, seconds in observations:
        costs.observe("m", padded, seconds)
    small, large = costs.seconds("m", 10), costs.seconds("m", 1000)
    if small is not None and large is not None:
        assert 0 <= small <= large
