"""A node's seconds for work, learned from the batches that ran."""

from __future__ import annotations

import pytest

from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.policy import Budget
from workers.batching.planning.work_seconds import Amount, WorkRate, WorkRates

BUDGET = Budget(cost=2000, rows=64)


def test_work_counts_its_full_batches() -> None:
    """5 ms a batch of 2,000 units, 66 us a unit."""
    rate = WorkRate(fixed_s=0.005, cost_s=66e-6, batch_cost=2000, batch_rows=64)
    assert rate.seconds(Amount(cost=4000, rows=80, heads=160)) == pytest.approx(0.01 + 0.264)
    assert rate.seconds(Amount(cost=64, rows=64, heads=64)) == pytest.approx(0.005 + 0.004224)
    assert rate.seconds(Amount()) == 0.0


def test_nothing_is_known_of_a_model_that_never_ran() -> None:
    """Its envelopes count as much as may be."""
    rates = WorkRates(CostModel())
    rates.known_before({"text": BUDGET})
    assert rates.now == {}


def test_the_first_batches_count_by_their_rows_and_later_ones_by_their_costs() -> None:
    """All versions of a model have one rate, under the name that its queue has."""
    costs = CostModel()
    rates = WorkRates(costs)

    def run(cost: int, rows: int) -> None:
        seconds = 0.005 + 66e-6 * cost
        costs.observe("text#1", BatchShape(cost, rows, rows), seconds)
        rates.ran("text#1", BUDGET, BatchShape(cost, rows, rows), seconds, None, None)

    run(1000, 10)
    assert rates.now["text"].seconds(Amount(2000, 20, 20)) == pytest.approx(0.142)
    for cost, rows in [(1000, 20), (500, 16), (2000, 30), (1500, 10), (100, 2), (1900, 64)] * 5:
        run(cost, rows)
    assert rates.now["text"].seconds(Amount(2000, 40, 40)) == pytest.approx(0.137, rel=0.05)


def test_the_host_is_what_costs_on_a_device_that_does_nothing() -> None:
    """640 rows for which the device waited 80 ms cost the host 125 us each; a wait for work counts for nobody."""
    rates = WorkRates(CostModel())
    for _ in range(5):
        rates.ran("text", BUDGET, BatchShape(2000, 64, 64), 1e-5, None, 0.008)
        rates.ran("text", BUDGET, BatchShape(20, 1, 1), 1e-5, None, None)
    assert rates.now["text"].host_s == pytest.approx(125e-6)
    assert rates.now["text"].seconds(Amount(2000, 64, 64)) == pytest.approx(0.008, rel=0.01)


def test_rows_that_the_cache_spares_make_a_model_faster() -> None:
    """Otherwise a second of predicted work would be done in a tenth of it, and the device would wait."""
    costs = CostModel()
    for _ in range(20):
        costs.observe("text", BatchShape(1000, 10, 10), 0.1)
    rates = WorkRates(costs)
    rates.known_before({"text": BUDGET})
    assert rates.now["text"].seconds(Amount(1000, 10, 10)) == pytest.approx(0.1, rel=0.05)
    for _ in range(100):
        rates.ran("text", BUDGET, BatchShape(1000, 10, 10), 0.01, 0.1, None)
    assert rates.now["text"].seconds(Amount(1000, 10, 10)) == pytest.approx(0.01, rel=0.1)
