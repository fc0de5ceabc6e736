"""What a device is given next, of what waits, what failed and what was only staged; without a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from producers.wire.catalogue import KINDS, Task
from tests.scripted_model import ScriptedModel
from tests.unit.test_stepping import Countdown
from workers.batching.inbox import Cancel
from workers.batching.microbatch import BatchRun, MicroBatch
from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.residence import AT_ONCE
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.roster import ServedModel
from workers.batching.work import Entry, Expired, Failed
from workers.batching.workload import Workload
from workers.models.interface.model import ModelSpec, Prepared

MODEL = ScriptedModel(
    ModelSpec("scripted", Path(), "1", {"echo": Task("echo", KINDS["text-classification"], "scripted", "")}, {})
)


def workload(rows: int) -> Workload:
    budget = Budget(cost=1000, rows=rows)
    policy = Policy(budgets={"scripted": budget})
    return Workload({"scripted": ServedModel(MODEL, "1", budget)}, policy, CostModel())


def entries(*texts: str, priority: int = 9) -> list[Entry]:
    rows = [MODEL.prepare(text, {}) for text in texts]
    return [Entry(row, ("echo",), Waiting("scripted", priority, MODEL.cost(row), 1.0)) for row in rows]


def given(work: Workload) -> MicroBatch | None:
    """Give the device what is next, if anything."""
    batch = work.next(now=2.0, running_s=0.0)
    if batch is not None:
        work.began(batch)
    return batch


def test_one_runs_and_one_is_staged_and_an_urgent_one_overtakes_it_once() -> None:
    """So the device never waits for its parent, and no flood of urgent ones keeps a batch from running for ever."""
    work = workload(rows=1)
    first, second, third = entries("a", "b", "c")
    work.add([first, second, third])
    assert [given(work), given(work), given(work)][2] is None
    urgent, more = entries("d", "e", priority=0)
    work.add([urgent, more])
    overtaking = given(work)
    assert overtaking is not None
    assert overtaking.entries == [urgent]
    assert given(work) is None


def test_the_halves_of_a_failed_batch_go_alone_before_all_others() -> None:
    """Nothing is staged behind a suspect: it would be suspected with it."""
    work = workload(rows=4)
    suspects, others = entries("a", "b", "c", "d"), entries("e", "f", "g", "h")
    work.add(suspects)
    failed = given(work)
    work.add(others)
    staged = given(work)
    assert failed is not None
    assert staged is not None
    assert work.end(failed.id) is failed
    work.raised(failed, "ValueError", "no", "")
    assert work.needs()["scripted"].priority == AT_ONCE
    assert given(work) is None  # the staged one has to end first
    work.end(staged.id)
    for half in (suspects[:2], suspects[2:]):
        alone = given(work)
        assert alone is not None
        assert alone.entries == half
        assert given(work) is None
        work.end(alone.id)
    assert given(work) is None


def test_an_item_that_raises_alone_has_failed_and_its_neighbours_go_on() -> None:
    work = workload(rows=2)
    poison, innocent = entries("a", "b")
    work.add([poison, innocent])
    while batch := given(work):
        work.end(batch.id)
        if poison in batch.entries:
            work.raised(batch, "ValueError", "no", "")
    assert isinstance(poison.outcome, Failed)
    assert poison.outcome.kind == "ModelError"
    assert innocent.outcome is None


def test_weights_that_cannot_be_loaded_are_no_items_fault() -> None:
    """Each half would have them loaded again, in vain: all are told why at once, and later ones try anew."""
    work = workload(rows=4)
    waiting = entries("a", "b", "c", "d")
    work.add(waiting)
    batch = given(work)
    assert batch is not None
    assert batch.entries == waiting
    work.end(batch.id)
    work.raised(batch, "LoadingFailed", "the file is cut off", "")
    assert [entry.outcome for entry in waiting] == [Failed("LoadingFailed", "the file is cut off", "", batch.id)] * 4
    assert given(work) is None
    work.add(later := entries("e"))
    again = given(work)
    assert again is not None
    assert again.entries == later


def test_of_a_lost_device_only_what_ran_is_suspected() -> None:
    """What was staged goes back to the front as it was; what ran is tried alone first."""
    work = workload(rows=1)
    ran, staged, waits = entries("a", "b", "c")
    work.add([ran, staged, waits])
    given(work), given(work)
    back = work.lost("DeviceLost", "it is gone")
    assert [batch.entries for batch in back] == [[staged]]
    for batch in back:
        work.put_back(batch)
    order = []
    while batch := given(work):
        order += batch.entries
        work.end(batch.id)
    assert order == [ran, staged, waits]


def test_nothing_of_a_model_that_is_not_loaded_is_next() -> None:
    work = workload(rows=1)
    work.add(entries("a"))
    work.note_absent({"scripted": 1.0})
    assert given(work) is None
    work.note_absent({})
    assert given(work) is not None
    assert work.busy == {"scripted"}


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_takes_everything_once(fails: bool) -> None:
    """Wherever an item is: waiting, running, staged, under suspicion."""
    work = workload(rows=2)
    all_of_them = entries(*"abcdefgh")
    work.add(all_of_them)
    first = given(work)
    assert first is not None
    given(work)
    if fails:
        work.end(first.id)
        work.raised(first, "ValueError", "no", "")
    taken = work.take_all()
    assert sorted(map(id, taken)) == sorted(map(id, all_of_them))
    assert work.take_all() == []


def stepwise(rows: int) -> Workload:
    budget = Budget(cost=1000, rows=rows)
    return Workload({"countdown": ServedModel(Countdown(), "1", budget)}, Policy(budgets={}), CostModel())


def request(seq: int, *, job: str = "job", deadline_at: float | None = None, priority: int = 3, cost: int = 1) -> Entry:
    waiting = Waiting("countdown", priority, cost, 1.0, deadline_at)
    return Entry(Prepared({}, cost, bytes([seq])), ("count",), waiting, job=job, seq=seq)


@pytest.mark.parametrize("absent", [{}, {"countdown": 60.0}])
def test_a_request_of_a_stepwise_model_expires_like_any_other(absent: dict[str, float]) -> None:
    """Otherwise its envelope, its slot and its lease would be held for ever."""
    work = stepwise(rows=4)
    work.note_absent(absent)
    late, in_time = request(0, deadline_at=1.5), request(1)
    work.add([late, in_time])
    batch = given(work)
    assert isinstance(late.outcome, Expired)
    assert in_time.outcome is None
    assert (batch is None) == bool(absent)
    assert work.take_all() == [in_time]


@pytest.mark.parametrize("cost", [1, 500])
def test_requests_step_together_within_the_bound(cost: int) -> None:
    """Of rows, or of cost, which stands for memory; a request more urgent than all others has room once more."""
    work = stepwise(rows=2 if cost == 1 else 9)
    work.add([request(n, cost=cost) for n in range(3)])
    first, second, third = given(work), given(work), given(work)
    assert first is not None
    assert second is not None
    assert third is None
    work.add([request(n, priority=0, cost=cost) for n in (7, 8)])
    urgent = given(work)
    assert urgent is not None
    assert urgent.priority == 0
    assert given(work) is None
    for batch in (first, second):
        assert work.end(batch.id) is batch
    more = given(work)
    assert more is not None
    assert more.priority == 0
    assert given(work) is None


def test_a_cancelled_request_stops_stepping_and_its_neighbours_go_on() -> None:
    work = stepwise(rows=4)
    requests = [request(0), request(1), request(0, job="other"), request(2)]
    work.add(requests)
    batches = [given(work) for _ in requests]
    assert None not in batches
    assert work.take(Cancel(items=frozenset({("job", 1)})).concerns) == ([requests[1]], [batches[1].id])  # type: ignore[union-attr]
    assert work.stepping_items() == [("job", 0), ("other", 0), ("job", 2)]
    assert work.take(Cancel(jobs=frozenset({"job"})).concerns)[0] == [requests[0], requests[3]]
    assert work.stepping_items() == [("other", 0)]


@pytest.mark.parametrize("model", ["scripted", "countdown"])
def test_the_costs_of_a_model_are_learned_from_its_batches(model: str) -> None:
    """Without them, deadlines, promises and shares are judged by nothing."""
    served = {
        "scripted": ServedModel(MODEL, "1", Budget(1000, 1)),
        "countdown": ServedModel(Countdown(), "1", Budget(9, 1)),
    }
    costs = CostModel()
    work = Workload(served, Policy(budgets={"scripted": Budget(1000, 1)}), costs)
    for n in range(8):
        work.add(entries("four") if model == "scripted" else [request(n)])
        batch = given(work)
        assert batch is not None
        work.end(batch.id)
        work.ran(batch, BatchRun(3.0, 0.25, 0.0, 0))
        shape = batch.shape
    assert costs.seconds(model, shape) == pytest.approx(0.25, rel=0.01)


def test_rows_from_the_cache_teach_no_costs() -> None:
    costs = CostModel()
    work = Workload(
        {"scripted": ServedModel(MODEL, "1", Budget(1000, 1))}, Policy(budgets={"scripted": Budget(1000, 1)}), costs
    )
    for _ in range(8):
        work.add(entries("four"))
        batch = given(work)
        assert batch is not None
        work.end(batch.id)
        work.ran(batch, BatchRun(3.0, 0.25, 0.0, cached_rows=1))
    assert costs.parts("scripted") is None


def test_requests_that_wait_for_a_retired_model_are_taken_back_and_the_stepping_go_on() -> None:
    work = stepwise(rows=1)
    work.add(requests := [request(0), request(1)])
    batch = given(work)
    assert batch is not None
    assert work.take_waiting("countdown") == requests[1:]
    assert work.stepping_items() == [("job", 0)]
    assert work.take_waiting("unknown") == []
