"""The batching policy: what it promises, for any waiting items."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.batching.policy import Budget, Decision, Shares, Waiting, next_batch

NOW = 1000.0
MODELS = ("text", "vision")
BUDGETS = {"text": Budget(cost=256, rows=8), "vision": Budget(cost=4, rows=4)}

items = st.builds(
    Waiting,
    model=st.sampled_from(MODELS),
    priority=st.sampled_from([0, 3, 9]),
    cost=st.integers(1, 600),
    arrived_at=st.floats(0, NOW),
    deadline_at=st.none() | st.floats(NOW - 100, NOW + 100),
)
queues = st.lists(items, max_size=60).map(lambda found: sorted(found, key=lambda item: item.arrived_at))
shares = st.builds(
    Shares,
    guaranteed=st.just({9: 0.2}),
    served=st.dictionaries(st.sampled_from([0, 3, 9]), st.floats(0, 1000), max_size=3),
)


def decide(waiting: list[Waiting], known: Shares | None = None) -> Decision:
    return next_batch(waiting, lambda model, _: BUDGETS[model], NOW, known)


def item(cost: int, *, priority: int = 3, model: str = "text", deadline_at: float | None = None) -> Waiting:
    return Waiting(model, priority, cost, 1.0, deadline_at)


@given(queues, shares)
def test_a_batch_is_of_one_model_and_within_its_budget(waiting, known):
    """Only an item that exceeds the budget by itself may exceed it, and then it runs alone."""
    batch = [waiting[i] for i in decide(waiting, known).batch]
    assert len({entry.model for entry in batch}) <= 1
    if len(batch) > 1:
        budget = BUDGETS[batch[0].model]
        assert len(batch) * max(entry.cost for entry in batch) <= budget.cost
        assert len(batch) <= budget.rows


@given(queues, shares)
def test_no_item_is_chosen_twice_or_after_its_deadline(waiting, known):
    """Expired items are named, all of them, and never computed."""
    decision = decide(waiting, known)
    assert len(set(decision.batch)) == len(decision.batch)
    late = {i for i, entry in enumerate(waiting) if entry.deadline_at is not None and entry.deadline_at <= NOW}
    assert set(decision.expired) == late
    assert not late & set(decision.batch)


@given(queues)
def test_the_oldest_of_the_most_urgent_always_goes(waiting):
    """Whatever its size: so nothing of the most urgent priority can be passed over for ever."""
    decision = decide(waiting)
    live = [i for i in range(len(waiting)) if i not in decision.expired]
    if live:
        urgent = min(waiting[i].priority for i in live)
        assert next(i for i in live if waiting[i].priority == urgent) in decision.batch


@given(queues, shares)
def test_work_is_never_refused(waiting, known):
    """While a live item waits, the device gets a batch: there is no timer to wait for."""
    decision = decide(waiting, known)
    assert bool(decision.batch) == (len(decision.expired) < len(waiting))


@given(queues)
def test_everything_is_served_in_the_end(waiting):
    """Batch after batch, every item leaves the queue exactly once."""
    left, served = list(waiting), 0
    while left:
        decision = decide(left)
        gone = {*decision.batch, *decision.expired}
        assert gone
        served += len(gone)
        left = [entry for i, entry in enumerate(left) if i not in gone]
    assert served == len(waiting)


@given(st.lists(st.integers(1, 40), min_size=8, max_size=60))
def test_a_filled_batch_is_mostly_real(costs):
    """Companions of the leader's own priority never make more than a quarter of the batch padding."""
    waiting = [item(cost) for cost in costs]
    batch = [waiting[i].cost for i in decide(waiting).batch]
    assert sum(batch) >= 0.75 * len(batch) * max(batch)


def test_companions_are_of_the_leader_s_length():
    """A long text does not drag short ones into its padding, nor the other way round."""
    decision = decide([item(10), item(200), item(12), item(9), item(210)])
    assert sorted(decision.batch) == [0, 2, 3]


def test_room_left_over_goes_to_bulk_that_needs_no_more_padding():
    """Bulk may ride along with interactive items, but may not make them slower."""
    waiting = [item(20, priority=9), item(30, priority=9), item(25, priority=0)]
    assert set(decide(waiting).batch) == {2, 0}


def test_bulk_leads_when_it_has_had_less_than_its_share():
    """Under endless interactive load the guaranteed share still moves."""
    waiting = [item(10, priority=9), *[item(10, priority=0) for _ in range(30)]]
    starved = Shares({9: 0.2}, {0: 90.0, 9: 5.0})
    fed = Shares({9: 0.2}, {0: 70.0, 9: 30.0})
    assert decide(waiting, starved).batch[0] == 0
    assert decide(waiting, fed).batch[0] == 1
