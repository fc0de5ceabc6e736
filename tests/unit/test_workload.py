"""What a device is given next, of what waits, what failed and what was only staged; without a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from producers.wire.catalogue import KINDS, Task
from tests.scripted_model import ScriptedModel
from workers.batching.microbatch import MicroBatch
from workers.batching.planning.cost_model import CostModel
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.residence import AT_ONCE
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.roster import ServedModel
from workers.batching.work import Entry, Failed
from workers.batching.workload import Workload
from workers.models.interface.model import ModelSpec

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
