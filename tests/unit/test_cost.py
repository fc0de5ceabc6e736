"""The learned cost model."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.batching.planning.cost_model import BatchShape, CostModel


def shape(padded: int, rows: int | None = None, heads: int | None = None) -> BatchShape:
    rows = max(1, padded // 50) if rows is None else rows
    return BatchShape(padded, rows, rows if heads is None else heads)


def taught(fixed: float, rate: float, count: int = 200, noise: float = 0.05) -> CostModel:
    random = Random(1)
    costs = CostModel()
    for _ in range(count):
        padded = random.randint(50, 4000)
        costs.observe("text", shape(padded), (fixed + rate * padded) * random.uniform(1 - noise, 1 + noise))
    return costs


@given(st.floats(0, 0.01), st.floats(1e-5, 1e-3))
def test_it_finds_the_line_that_made_the_observations(fixed, rate):
    """Within a tenth, under noise of a twentieth, for large batches and for small ones."""
    costs = taught(fixed, rate)
    for padded in (100, 2000, 4000):
        assert costs.seconds("text", shape(padded)) == pytest.approx(fixed + rate * padded, rel=0.1)


def test_it_tells_rows_and_heads_from_padded_cost():
    """A batch of many short rows with four heads each is not one of few long rows with one."""
    random = Random(2)
    costs = CostModel()

    def seconds(of: BatchShape) -> float:
        return 0.002 + 1e-5 * of.padded + 1e-4 * of.rows + 5e-5 * of.heads

    for _ in range(300):
        rows = random.randint(1, 64)
        batch = BatchShape(rows * random.randint(5, 200), rows, rows * random.randint(1, 4))
        costs.observe("text", batch, seconds(batch))
    for batch in (BatchShape(640, 64, 256), BatchShape(640, 4, 4), BatchShape(10, 1, 1)):
        assert costs.seconds("text", batch) == pytest.approx(seconds(batch), rel=0.05)


def test_it_says_nothing_before_it_knows():
    """A guess from a batch or two would shrink the first real ones for nothing."""
    costs = CostModel()
    assert costs.seconds("text", shape(100)) is None
    costs.observe("text", shape(100), 1.0)
    assert costs.parts("text") is None


def test_equal_batches_teach_their_mean():
    """Without any spread there is nothing to tell the parts by; proportion is the best guess."""
    costs = CostModel()
    for _ in range(20):
        costs.observe("text", shape(500), 0.1)
    assert costs.seconds("text", shape(500)) == pytest.approx(0.1, rel=0.01)
    assert costs.seconds("text", shape(1000)) == pytest.approx(0.2, rel=0.01)


def test_it_follows_a_machine_that_becomes_slower():
    """What was learned first must fade, though one slow batch alone teaches little."""
    costs = taught(0.001, 1e-4)
    costs.observe("text", shape(1000), 30.0)
    assert costs.seconds("text", shape(1000)) == pytest.approx(0.1, rel=0.2)
    for _ in range(300):
        costs.observe("text", shape(1000), 0.3)
        costs.observe("text", shape(2000), 0.6)
    assert costs.seconds("text", shape(1500)) == pytest.approx(0.45, rel=0.1)


def test_what_was_learned_can_be_kept():
    """As JSON, from one run to the next."""
    costs = taught(0.002, 1e-4)
    again = CostModel(json.loads(json.dumps(costs.learned())))
    assert again.seconds("text", shape(700)) == costs.seconds("text", shape(700))


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 64), st.floats(0, 10)), min_size=6, max_size=50))
def test_predictions_are_never_negative_and_grow_with_the_batch(observations):
    """Whatever it saw, a larger batch is never predicted to be shorter."""
    costs = CostModel()
    for padded, rows, seconds in observations:
        costs.observe("m", BatchShape(padded, rows, rows), seconds)
    small, large = costs.seconds("m", BatchShape(10, 1, 1)), costs.seconds("m", BatchShape(1000, 10, 10))
    assert small is not None
    assert large is not None
    assert 0 <= small <= large
