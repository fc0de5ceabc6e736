"""The batching policy: what it promises, for any waiting items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.decision import Decision, next_batch
from workers.batching.planning.policy import Budget, Moment, Policy
from workers.batching.planning.tenant_turns import Charge, Turns
from workers.batching.planning.waiting_pool import Pool, Ticket, Waiting

NOW = 1000.0
MODELS = ("text", "vision")
POLICY = Policy(
    budgets={"text": Budget(cost=256, rows=8), "vision": Budget(cost=4, rows=4)}, guaranteed_shares={9: 0.2}
)

items = st.builds(
    Waiting,
    model=st.sampled_from(MODELS),
    priority=st.sampled_from([0, 3, 9]),
    cost=st.integers(1, 600),
    arrived_at=st.floats(NOW - 20, NOW),
    deadline_at=st.none() | st.floats(NOW - 10, NOW + 10),
    content=st.sampled_from([b"", b"known"]),
    tenant=st.sampled_from(["", "other"]),
)
# rows of equal content are equally long
contents = items.map(
    lambda item: replace(item, content=bytes([item.cost % 256, item.cost // 256])) if item.content else item
)
queues = st.lists(contents, max_size=60).map(lambda found: sorted(found, key=lambda item: item.arrived_at))


@st.composite
def histories(draw: st.DrawFn) -> Turns:
    turns = Turns({"other": 3.0})
    for leader, seconds in draw(st.lists(st.tuples(st.sampled_from([0, 3, 9]), st.floats(0, 1)), max_size=5)):
        turns.lead(Charge(leader, "", {9: 0.2}, {(leader, ""): 1.0}), seconds)
    return turns


def known(fixed: float = 0.002, rate: float = 1e-4) -> CostModel:
    costs = CostModel()
    for padded in (10, 50, 100, 150, 200, 256) * 3:
        for model, rows in product(MODELS, (1, 3, 7)):
            costs.observe(model, BatchShape(padded, rows, rows), fixed + rate * padded)
    return costs


def decide(
    waiting: Sequence[Waiting],
    turns: Turns | None = None,
    *,
    policy: Policy = POLICY,
    costs: CostModel | None = None,
    seen: Sequence[int] = (),
    starts_at: float = NOW,
    absent: Mapping[str, float] | None = None,
) -> Decision[int]:
    """Decide on these items, each known by its index."""
    pool: Pool[int] = Pool(policy.window)
    for i, item in enumerate(waiting):
        pool.add(item, i)
    return next_batch(
        Moment(
            pool=pool,
            policy=policy,
            costs=costs or CostModel(),
            turns=turns or Turns(),
            now=NOW,
            starts_at=starts_at,
            seen_at=dict.fromkeys(seen, NOW),
            absent=absent or {},
        )
    )


def chosen(decision: Decision[int]) -> list[int]:
    return [ticket.item for ticket in decision.batch]


def item(cost: int, *, priority: int = 3, model: str = "text", deadline_at: float | None = None) -> Waiting:
    return Waiting(model, priority, cost, NOW - 1, deadline_at)


def rows_of(batch: Sequence[Ticket[int]]) -> list[Waiting]:
    """The rows of a batch: equal contents once."""
    by_content = {ticket.waiting.content or bytes([n]): ticket.waiting for n, ticket in enumerate(batch)}
    return list(by_content.values())


@given(queues, histories(), st.sampled_from([None, known()]))
def test_a_batch_is_of_one_model_and_within_its_budget(waiting, turns, costs):
    """Only an item that exceeds the budget by itself may exceed it, and then it runs alone."""
    batch = decide(waiting, turns, costs=costs, seen=[0]).batch
    assert len({ticket.waiting.model for ticket in batch}) <= 1
    rows = rows_of(batch)
    if len(rows) > 1:
        budget = POLICY.budgets[rows[0].model]
        assert len(rows) <= budget.rows
        assert len(rows) * max(row.cost for row in rows) <= budget.cost


@given(queues, histories(), st.sampled_from([None, known()]))
def test_no_item_is_chosen_twice_or_after_its_deadline(waiting, turns, costs):
    """What can no longer make it is named, all of it, and never computed."""
    decision = decide(waiting, turns, costs=costs)
    batch = chosen(decision)
    assert len(set(batch)) == len(batch)
    took = {i: costs.seconds(w.model, BatchShape(w.cost, 1, 1)) if costs else 0.0 for i, w in enumerate(waiting)}
    late = {i for i, w in enumerate(waiting) if w.deadline_at is not None and w.deadline_at <= NOW + took[i]}
    assert {ticket.item for ticket in decision.expired} == late
    assert not late & set(batch)


@given(queues, histories())
def test_a_batch_ends_before_the_deadlines_in_it(waiting, turns):
    """Company may not cost an item its deadline."""
    decision = decide(waiting, turns, costs=known())
    deadlines = [t.waiting.deadline_at for t in decision.batch if t.waiting.deadline_at is not None]
    if deadlines and len(decision.batch) > 1:
        assert decision.predicted_s is not None
        assert NOW + decision.predicted_s < min(deadlines)


@given(queues)
def test_the_oldest_of_the_most_urgent_always_goes(waiting):
    """Whatever its size: so nothing of the most urgent priority can be passed over for ever."""
    waiting = [replace(each, tenant="") for each in waiting]
    decision = decide(waiting)
    gone = {ticket.item for ticket in decision.expired}
    live = [i for i in range(len(waiting)) if i not in gone]
    if live:
        urgent = min(waiting[i].priority for i in live)
        assert chosen(decision)[0] == next(i for i in live if waiting[i].priority == urgent)


@given(queues, histories(), st.sampled_from([None, known()]))
def test_work_is_never_refused(waiting, turns, costs):
    """While a live item waits, the device gets a batch: there is no timer to wait for."""
    decision = decide(waiting, turns, costs=costs, seen=[0, 3])
    assert bool(decision.batch) == (len(decision.expired) < len(waiting))


@given(st.lists(st.integers(1, 40), min_size=8, max_size=60))
def test_a_filled_batch_is_mostly_real(costs):
    """Outliers wait for a batch of their own size."""
    batch = [costs[i] for i in chosen(decide([item(cost) for cost in costs]))]
    assert sum(batch) >= 0.8 * len(batch) * max(batch) - 1e-6


def test_companions_are_of_the_leader_s_length():
    """A long text does not drag short ones into its padding, nor the other way round."""
    assert sorted(chosen(decide([item(10), item(200), item(12), item(9), item(210)]))) == [0, 2, 3]


def test_the_window_bounds_how_far_a_newer_item_may_overtake():
    """Of equals in size, those beyond the window wait."""
    waiting = [item(10), *[item(20)] * 4, item(10)]
    assert chosen(decide(waiting, policy=replace(POLICY, window=5))) == [0]
    assert chosen(decide(waiting, policy=replace(POLICY, window=6))) == [0, 5]


def test_room_left_over_goes_to_bulk_that_needs_no_more_padding():
    """Bulk may ride along with interactive items, but may not widen them, nor be mostly padding."""
    waiting = [item(24, priority=9), item(30, priority=9), item(5, priority=9), item(25, priority=0)]
    assert chosen(decide(waiting)) == [3, 0]


def test_riders_are_of_the_leaders_model():
    """There is room left, and the other model's items are as long: on its rows they would be computed wrongly."""
    waiting = [item(25, priority=0), *[item(25, priority=9, model="vision")] * 3, item(25, priority=9)]
    assert chosen(decide(waiting)) == [0, 4]


def test_an_item_is_late_if_it_would_end_too_late_alone():
    """By the time of its own size and heads, from the moment at which the device is free and its model is there."""
    costs = known(fixed=0.002, rate=1e-2)

    def late(cost: int, deadline_at: float, starts_at: float = NOW, **absent: float) -> bool:
        waiting = [item(cost, deadline_at=deadline_at), item(10), item(200)]
        decision = decide(waiting, costs=costs, starts_at=starts_at, absent=absent)
        return [ticket.item for ticket in decision.expired] == [0]

    took = {cost: costs.seconds("text", BatchShape(cost, 1, 1)) or 0.0 for cost in (10, 200)}
    assert took[10] < took[200]
    for cost, seconds in took.items():
        for begins_at, absent in ((NOW, {}), (NOW + 1.0, {}), (NOW + 5.0, {"text": 5.0})):
            starts_at = NOW if absent else begins_at
            assert late(cost, begins_at + seconds - 1e-6, starts_at, **absent)
            assert not late(cost, begins_at + seconds + 1e-6, starts_at, **absent)


def test_the_prediction_counts_padding_rows_and_heads():
    costs = CostModel()
    for padded, rows, heads in product((10, 50, 100, 200), (1, 3, 7), (1, 4, 8)):
        costs.observe("text", BatchShape(padded, rows, heads), 0.01 + 1e-4 * padded + 0.02 * rows + 0.003 * heads)
    decision = decide([item(10), item(20)], costs=costs, policy=replace(POLICY, least_real_share=0.5))
    assert decision.shape == BatchShape(40, 2, 2)
    assert decision.predicted_s == pytest.approx(0.01 + 0.004 + 0.04 + 0.006, rel=0.02)


def test_riders_do_not_slow_the_urgent():
    """On a device whose time is proportional to the work, a ride costs the leader; where passes are dear, it is
    free.
    """
    waiting = [item(25, priority=0), *[item(25, priority=9)] * 7]
    assert len(chosen(decide(waiting, costs=known(fixed=1e-5, rate=1e-3)))) == 1
    assert len(chosen(decide(waiting, costs=known(fixed=1e-1, rate=1e-5)))) == 8


def test_bulk_leads_when_it_is_owed_its_share():
    """Under endless interactive load the guaranteed share still moves, and no more than that."""
    waiting = [item(10, priority=9), *[item(10, priority=0)] * 30]
    turns = Turns()
    led = []
    for _ in range(100):
        decision = decide(waiting, turns)
        assert decision.charge
        led.append(decision.charge.leader)
        turns.lead(decision.charge, 0.1)
    assert led[0] == 0
    assert led.count(9) == pytest.approx(20, abs=1)


def test_what_has_aged_leads_now_and_then():
    """A priority without any guaranteed share is not starved either."""
    old = Waiting("text", 3, 10, NOW - 11)
    waiting = [old, *[item(10, priority=0)] * 30]
    turns, led = Turns(), []
    for _ in range(100):
        decision = decide(waiting, turns)
        assert decision.charge
        led.append(decision.charge.leader)
        turns.lead(decision.charge, 0.1)
    assert led.count(3) == pytest.approx(5, abs=1)


def test_batches_below_a_promise_are_short_while_it_is_wanted():
    """An interactive item never stands behind a long bulk batch; without one lately, bulk is as fast as it can be."""
    waiting = [item(30, priority=9)] * 8
    policy = replace(POLICY, promised_wait_s={0: 0.02}, stages=2)
    costs = known(fixed=1e-4, rate=1e-4)
    assert len(chosen(decide(waiting, policy=policy, costs=costs, seen=[9]))) == 8
    short = decide(waiting, policy=policy, costs=costs, seen=[0, 9])
    assert 1 < len(short.batch) < 8
    assert short.predicted_s is not None
    assert short.predicted_s <= 0.01


def test_a_short_promise_never_buys_mostly_overhead():
    """With 20 ms a pass however small it is, batches of 10 ms would waste most of the device."""
    policy = replace(POLICY, promised_wait_s={0: 0.001})
    decision = decide([item(10, priority=9)] * 8, policy=policy, costs=known(fixed=0.02, rate=1e-3), seen=[0])
    assert decision.predicted_s is not None
    assert 0.045 < decision.predicted_s <= 0.06


def test_the_same_content_is_one_row_and_rides_free():
    """Wanted by anybody at any priority, it goes with whoever goes first, beyond the rows of the budget."""
    same = [Waiting("text", priority, 30, NOW, content=b"same") for priority in (0, 9, 3)]
    others = [Waiting("text", 0, 30, NOW, content=bytes([n])) for n in range(7)]
    decision = decide([*same, *others])
    assert sorted(chosen(decision)) == list(range(10))
    assert decision.shape.rows == 8


def test_tenants_take_turns_by_weight():
    """Inside a priority, the tenant of weight 3 gets three times the device time of the one of weight 1."""
    waiting = [Waiting("text", 3, 256, NOW, tenant=tenant) for tenant in ("a", "b")]
    turns, led = Turns({"b": 3.0}), []
    for _ in range(100):
        decision = decide(waiting, turns)
        assert decision.charge
        led.append(decision.charge.tenant)
        turns.lead(decision.charge, 0.1)
    assert led.count("b") == pytest.approx(75, abs=1)
