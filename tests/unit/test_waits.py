"""The policy in time: how long anything waits, who gets the device, what is wasted. On a virtual clock and a device
of numbers.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.decision import AGED_SHARE, MARGIN
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.simulation import Arrival, Outcome, simulate
from workers.batching.planning.tenant_turns import MOST_AHEAD_S
from workers.batching.planning.waiting_pool import Waiting

POLICY = Policy(
    budgets={"text": Budget(256, 8)},
    guaranteed_shares={9: 0.2},
    promised_wait_s={0: 0.05, 3: 1.0},
    aged_after_s=1.0,
)
PRIORITIES = 3


def device(model: str, shape: BatchShape) -> float:
    return 0.002 + 2e-4 * shape.padded + 1e-4 * shape.rows


def taught() -> CostModel:
    costs = CostModel()
    for rows in (1, 2, 5, 8):
        for cost in (5, 20, 60, 150):
            shape = BatchShape(rows * cost, rows, rows)
            costs.observe("text", shape, device("text", shape))
    return costs


@st.composite
def traces(draw: st.DrawFn) -> list[Waiting]:
    """Bursts of equal items: at one moment, some of a priority and a size."""
    bursts = draw(
        st.lists(
            st.tuples(
                st.floats(0, 5), st.sampled_from([0, 3, 9]), st.integers(1, 200), st.integers(1, 40), st.booleans()
            ),
            min_size=1,
            max_size=25,
        )
    )
    trace = [
        Waiting("text", priority, cost, at, content=b"" if unlike else b"%d" % cost)
        for at, priority, cost, count, unlike in bursts
        for _ in range(count)
    ]
    return sorted(trace, key=lambda waiting: waiting.arrived_at)


def promised_s(arrival: Arrival, ahead: int, longest_s: float) -> float:
    """The longest wait that the policy's docstring promises."""
    bulk, aged = MARGIN * POLICY.guaranteed_shares[9], AGED_SHARE
    total = bulk + aged
    at_the_device_s = (POLICY.stages + 1) * longest_s
    if arrival.waiting.priority == 0:
        return (ahead + 2 * PRIORITIES - 1) * longest_s / (1 - total) + at_the_device_s
    share = bulk if arrival.waiting.priority == 9 else aged
    aged_s = 0.0 if arrival.waiting.priority == 9 else POLICY.aged_after_s
    return aged_s + (MOST_AHEAD_S + (ahead + 3 * PRIORITIES - 1) * longest_s) / min(share, 1 - total) + at_the_device_s


def ahead_of(outcome: Outcome, arrival: Arrival) -> int:
    """How many items of its priority waited when it came; of those that came with it, all are counted."""
    mine = arrival.waiting
    return sum(
        other is not arrival
        and other.waiting.priority == mine.priority
        and other.waiting.arrived_at <= mine.arrived_at
        and (other.began_at or 0.0) >= mine.arrived_at
        for other in outcome.arrivals
    )


@settings(max_examples=50, deadline=None)
@given(traces())
def test_nothing_waits_longer_than_promised(trace):
    """Every item of every priority, whatever comes."""
    outcome = simulate(trace, POLICY, device, costs=taught())
    longest_s = max(ran.seconds for ran in outcome.batches)
    last: dict[int, Arrival] = {}
    for arrival in outcome.arrivals:
        assert arrival.began_at is not None
        slowest = last.setdefault(arrival.waiting.priority, arrival)
        if arrival.began_at - arrival.waiting.arrived_at >= (slowest.began_at or 0.0) - slowest.waiting.arrived_at:
            last[arrival.waiting.priority] = arrival
    for arrival in last.values():
        assert arrival.began_at is not None
        wait_s = arrival.began_at - arrival.waiting.arrived_at
        assert wait_s <= promised_s(arrival, ahead_of(outcome, arrival), longest_s) + 1e-9


@pytest.mark.parametrize("priority", [3, 9])
def test_the_promise_holds_against_an_endless_flood(priority):
    """Of more urgent work than the device can do, for so long that without a turn of its own it would be late."""
    late = [Waiting("text", priority, 150 + n, 1.0) for n in range(8)]
    flood = saturating(0, until_s=40, every_s=0.03, cost=200)
    outcome = simulate(merged(late, flood), POLICY, device, costs=taught())
    longest_s = max(ran.seconds for ran in outcome.batches)
    waited = [a for a in outcome.arrivals if a.waiting.priority == priority]
    for arrival in waited:
        assert arrival.began_at is not None
        promise_s = promised_s(arrival, len(late) - 1, longest_s)
        assert arrival.began_at - arrival.waiting.arrived_at <= promise_s < 35


@settings(max_examples=30, deadline=None)
@given(traces())
def test_the_device_is_never_idle_while_something_waits(trace):
    """A batch begins when the one before it ends, or when its leader arrives: there is no timer."""
    outcome = simulate(trace, POLICY, device, costs=taught())
    free_at = 0.0
    for ran in outcome.batches:
        came = min(arrival.waiting.arrived_at for arrival in ran.items)
        assert ran.began_at == pytest.approx(max(free_at, came))
        free_at = ran.began_at + ran.seconds


@settings(max_examples=30, deadline=None)
@given(traces(), st.floats(0.01, 2.0))
def test_what_is_computed_is_in_time_and_the_rest_expires(trace, patience_s):
    """With predictions that hold, no computed item misses its deadline by more than the batch ahead was misjudged, and
    by one more urgent batch that overtook its own when that was decided on already.
    """
    with_deadlines = [
        Waiting(w.model, w.priority, w.cost, w.arrived_at, w.arrived_at + patience_s, w.content) for w in trace
    ]
    outcome = simulate(with_deadlines, POLICY, device, costs=taught())
    least_urgent = max((ran.leader for ran in outcome.batches), default=0)
    overtook_s = max((ran.seconds for ran in outcome.batches if ran.leader < least_urgent), default=0.0)
    for arrival in outcome.arrivals:
        assert arrival.expired != (arrival.ended_at is not None)
        if arrival.ended_at is not None:
            assert arrival.latency_s <= patience_s * 1.05 + 0.005 + overtook_s


def saturating(priority: int, *, until_s: float, every_s: float, cost: int = 30) -> list[Waiting]:
    return [Waiting("text", priority, cost, n * every_s) for n in range(int(until_s / every_s))]


def merged(*traces: list[Waiting]) -> list[Waiting]:
    return sorted((waiting for trace in traces for waiting in trace), key=lambda waiting: waiting.arrived_at)


def test_bulk_keeps_its_share_while_interactive_saturates():
    """No less than it is guaranteed, and hardly more: the rest is the urgent one's."""
    trace = merged(saturating(0, until_s=12, every_s=0.002), saturating(9, until_s=12, every_s=0.02))
    outcome = simulate(trace, POLICY, device, costs=taught())
    assert 0.2 <= outcome.share(9, since=2, until=12) <= 0.22


def test_an_unguaranteed_priority_is_not_starved():
    """Standard work has no share of its own, and ages."""
    trace = merged(saturating(0, until_s=12, every_s=0.002), saturating(3, until_s=12, every_s=0.02))
    outcome = simulate(trace, POLICY, device, costs=taught())
    assert outcome.share(3, since=7, until=12) >= 0.8 * AGED_SHARE


def test_a_lone_urgent_item_hardly_notices_bulk():
    """Beside its own time, at most the batches that the promise allows it to meet; the first one finds longer ones
    there.
    """
    asked = [Waiting("text", 0, 30, 1.0 + n * 0.2) for n in range(40)]
    outcome = simulate(merged(asked, saturating(9, until_s=10, every_s=0.004)), POLICY, device, costs=taught())
    alone_s = device("text", BatchShape(30, 1, 1))
    slowest_s = max(a.latency_s for a in outcome.arrivals if a.waiting.priority == 0 and a.waiting.arrived_at > 1.0)
    assert slowest_s <= alone_s + POLICY.promised_wait_s[0] + 0.01  # what rides along is mostly the pass's fixed time


def test_an_urgent_item_overtakes_what_is_staged():
    """It waits for the batch that runs, and not for the one behind; which runs next all the same, whoever comes
    then.
    """
    policy = Policy(budgets={"text": Budget(256, 1)})
    trace = [Waiting("text", 9, 100, 0.0), Waiting("text", 9, 101, 0.0), Waiting("text", 9, 102, 0.0)]
    urgent = [Waiting("text", 0, 100, 0.001), Waiting("text", 0, 101, 0.002), Waiting("text", 0, 102, 0.003)]
    outcome = simulate([*trace, *urgent], policy, device)
    order = [ran.items[0].waiting for ran in outcome.batches]
    assert order == [trace[0], urgent[0], trace[1], urgent[1], urgent[2], trace[2]]


def test_a_small_tenant_does_not_wait_for_a_large_one():
    """A hundred rows beside a hundred thousand take at most three times as long as alone."""

    def rows(tenant: str, count: int, at: float) -> list[Waiting]:
        return [Waiting("text", 9, 20 + n % 10, at, tenant=tenant) for n in range(count)]

    def took(trace: list[Waiting]) -> float:
        outcome = simulate(trace, POLICY, device, costs=taught())
        small = [a for a in outcome.arrivals if a.waiting.tenant == "small"]
        return max(a.latency_s for a in small)

    beside = took(merged(rows("large", 4000, 0.0), rows("small", 100, 1.0)))
    assert beside <= 3 * took(rows("small", 100, 1.0))


def mixed(count: int) -> list[Waiting]:
    """The lengths of benchmarks/workload.py: 80 % short, 20 % long."""
    random = Random(1)

    def tokens() -> int:
        short = random.random() < 0.8
        return max(4, int(random.gauss(21, 9) if short else random.gauss(172, 14)))

    return [Waiting("text", 9, tokens(), 0.0) for _ in range(count)]


def test_little_of_a_mixed_load_is_padding():
    """At most a twentieth, with what a worker holds of a bulk job waiting, down to its last item."""
    policy = Policy(budgets={"text": Budget(1024, 64)})
    outcome = simulate(mixed(2000), policy, device, costs=taught())
    assert outcome.waste <= 0.05
    assert Counter(arrival.ended_at is not None for arrival in outcome.arrivals) == {True: 2000}
