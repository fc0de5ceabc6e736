"""The stages of the device, the turns of priorities and tenants, and the needs of models: small rules, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.residence import Need
from workers.batching.planning.scheduler import Scheduler
from workers.batching.planning.stage_times import Stages
from workers.batching.planning.tenant_turns import MOST_AHEAD_S, Charge, Turns
from workers.batching.planning.waiting_pool import Waiting

# --- stages ---


def stages(*given: tuple[str, int]) -> Stages[str]:
    made: Stages[str] = Stages()
    for batch, priority in given:
        made.give(batch, priority, 2.0)
    return made


def test_a_staged_batch_is_overtaken_once_at_most() -> None:
    """Whatever ends meanwhile: urgent batches must not keep it waiting for ever."""
    made = stages(("running", 9))
    assert made.overtakable is None, "nothing is staged"
    made.give("staged", 9, 2.0)
    assert made.overtakable == 9
    made.give("urgent", 0, 1.0, overtaking=True)
    assert list(made) == ["running", "urgent", "staged"]
    assert made.overtakable is None
    made.end("running")
    assert made.overtakable is None, "it was overtaken already"
    made.end("urgent")
    made.give("next", 9, 2.0)
    assert made.overtakable == 9, "another batch is staged now"


def test_an_overtaken_batch_is_known_after_the_other_has_ended() -> None:
    """In whatever order their ends are heard of."""
    made = stages(("running", 9), ("staged", 9))
    made.give("urgent", 0, 1.0, overtaking=True)
    made.end("urgent")
    assert list(made) == ["running", "staged"]
    assert made.overtakable is None


@pytest.mark.parametrize("first", ["running", "staged"])
def test_a_batch_behind_an_overtaking_one_is_not_overtaken(first: str) -> None:
    """The device may have run the staged batch first: the order of these two is not known here."""
    made = stages(("running", 9), ("staged", 9))
    made.give("urgent", 0, 1.0, overtaking=True)
    made.end("running")
    made.end("staged" if first == "staged" else "urgent")
    made.give("next", 9, 2.0)
    assert made.overtakable == (None if first == "staged" else 9)


def test_a_further_batch_begins_when_those_before_it_end() -> None:
    assert Stages[str]().busy_s(5.0) == 0.0
    made = stages(("running", 9))
    assert made.busy_s(0.5) == 1.5
    assert made.busy_s(3.0) == 0.0, "it should have ended: it may at any time"
    made.give("staged", 9, 4.0)
    assert made.busy_s(0.5) == 5.5
    assert made.busy_s(3.0) == 4.0
    assert made.busy_s(0.5, overtaking=True) == 1.5


# --- turns ---


def test_a_debt_grows_by_the_share_and_is_paid_by_leading() -> None:
    turns = Turns()
    turns.lead(Charge(0, "", {9: 0.2}), 1.0)
    turns.lead(Charge(0, "", {9: 0.2}), 1.0)
    assert turns.owed_s(9) == pytest.approx(0.4)
    turns.lead(Charge(9, "", {9: 0.2}), 1.0)
    assert turns.owed_s(9) == pytest.approx(0.4 + 0.2 - 1.0), "it took time from others: all of it counts"
    turns.correct(Charge(9, "", {9: 0.2}), -0.5)
    assert turns.owed_s(9) == pytest.approx(-0.4 - 0.1 + 0.5), "the batch was shorter than predicted"


def test_time_that_nobody_else_wanted_is_not_held_against_a_priority() -> None:
    turns = Turns()
    turns.lead(Charge(9, "", {}), 100.0)
    assert turns.owed_s(9) == -MOST_AHEAD_S
    turns.lead(Charge(9, "", {9: 0.2}), 1.0)
    turns.lead(Charge(9, "", {}), 1.0)
    assert turns.owed_s(9) == pytest.approx(-MOST_AHEAD_S + 0.2 - 1.0), "nor does it forgive what was taken"


def test_a_tenant_pays_by_its_weight() -> None:
    turns = Turns({"heavy": 4.0})
    turns.lead(Charge(3, "heavy", {}, {(3, "heavy"): 0.5, (3, "light"): 0.5}), 1.0)
    assert turns.next_tenant(3, ["light", "heavy"]) == "heavy"
    turns.lead(Charge(3, "heavy", {}, {(3, "heavy"): 1.0}), 2.0)
    assert turns.next_tenant(3, ["heavy", "light"]) == "light"


# --- needs ---


@dataclass(frozen=True)
class Item:
    waiting: Waiting


def test_an_absent_model_is_needed_by_the_first_deadline_of_its_own_items() -> None:
    """By another's deadline, the wrong model would be loaded, and one evicted for nothing."""
    scheduler: Scheduler[Item] = Scheduler(Policy(budgets=dict.fromkeys("abc", Budget(9, 9))), CostModel())
    given = [("a", 9, 3.0, 60.0), ("b", 3, 1.0, 20.0), ("a", 0, 5.0, 40.0), ("a", 9, 4.0, 50.0), ("b", 3, 2.0, None)]
    scheduler.add(Item(Waiting(model, priority, 1, at, deadline_at)) for model, priority, at, deadline_at in given)
    scheduler.add([Item(Waiting("c", 3, 1, 6.0, 10.0))])
    scheduler.absent = {"a": 1.0, "b": 1.0, "unwanted": 1.0}
    assert scheduler.needs() == {"a": Need(0, 3.0, 40.0), "b": Need(3, 1.0, 20.0), "c": Need(3, 6.0)}


def test_a_batch_that_takes_longer_than_predicted_is_expected_to_take_as_much_longer_again() -> None:
    """A device may have stalled: other nodes then compute what waits here."""
    stages: Stages[str] = Stages()
    assert stages.ahead_s(9.0) == (0.0, 0.0)
    stages.give("first", 9, 2.0)
    stages.give("second", 9, 1.0)
    assert stages.ahead_s(0.5) == (2.5, 0.0)
    assert stages.ahead_s(2.5) == (1.5, 0.0)
    assert stages.ahead_s(6.0) == (5.0, 3.0)
