"""How a block waits: a batch of its rows at a time, by size, within all limits of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from workers.batching.block_batches import BlockBatch, BlockEntry
from workers.batching.planning.cost_model import BatchShape, CostModel
from workers.batching.planning.policy import Budget, Policy
from workers.batching.planning.scheduler import Scheduler
from workers.batching.planning.waiting_pool import Waiting
from workers.batching.work import Computed, Entry, Group
from workers.models.interface.model import Prepared
from workers.models.interface.text_block import ALONE, TextBlock

NOW = 100.0
BUDGET = Budget(160, 64)
SIZES = (9, 40, 38, 10, 3, 41, 36)


def block(sizes: tuple[int, ...] = SIZES, *, priority: int = 9, deadline_at: float | None = None) -> BlockEntry:
    made = TextBlock(np.array(sizes), np.arange(len(sizes)), None)
    waiting = Waiting("text", priority, 0, NOW, deadline_at=deadline_at, tenant="t")
    return BlockEntry.of(made, range(len(sizes)), ("a", "b"), waiting, job="j")


def item(size: int, priority: int) -> Entry:
    return Entry(Prepared({}, size, b""), ("a",), Waiting("text", priority, size, NOW))


def scheduler(costs: CostModel | None = None, budget: Budget = BUDGET, **changes: object) -> Scheduler[Entry]:
    policy = Policy(budgets={"text": budget}, **changes)  # type: ignore[arg-type]
    return Scheduler(policy, costs or CostModel())


def sizes_of(entry: Entry) -> list[int]:
    assert entry.waiting.sizes is not None
    return entry.waiting.sizes.tolist()


def test_batches_are_cut_from_the_largest_rows_on() -> None:
    """Each within the budget, and mostly real; the group has all parts."""
    whole, queue = block(), scheduler()
    group = Group([whole])
    queue.add([whole])
    assert queue.amounts() == [("text", 9, (sum(SIZES), len(SIZES), 2 * len(SIZES)))]
    found = []
    while batch := queue.next(NOW).batch:
        (part,) = batch.items
        found.append(sizes_of(part))
        assert batch.shape == BatchShape(len(found[-1]) * found[-1][0], len(found[-1]), 2 * len(found[-1]))
        assert batch.real == sum(found[-1]) >= 0.8 * batch.shape.padded
    assert found == [[41, 40, 38], [36], [10, 9], [3]]
    assert len(group.entries) == len(found)
    parts = [entry for entry in group.entries if isinstance(entry, BlockEntry)]
    texts = {int(text) for part in parts for text in part.texts()[0]}
    assert texts == set(range(len(SIZES)))


def test_a_batch_takes_rows_of_the_same_size_from_all_blocks_of_its_lane() -> None:
    """The oldest leads with its largest row; rows that are larger wait for their own block's turn."""
    first, second, third = block((40, 12)), block((90, 41, 39, 38, 11)), block((36, 10))
    queue = scheduler()
    queue.add([first, second, third])
    batches = []
    while batch := queue.next(NOW).batch:
        formed = BlockBatch(batch.items, NOW, batch)
        assert formed.shape == batch.shape
        batches.append([sizes_of(part) for part in batch.items])
    assert batches == [[[40], [39, 38], [36]], [[12], [11], [10]], [[90]], [[41]]]
    assert queue.amounts() == []


def test_blocks_of_about_half_a_second_share_their_batches_so_that_results_come_steadily() -> None:
    """Each block takes 0.2 s: the first three share the first batch, and the fourth waits until the first has run."""
    costs = CostModel()
    for cost, rows, heads in ((40, 1, 2), (80, 2, 4), (160, 4, 8), (160, 16, 32)) * 40:
        costs.observe("text", BatchShape(cost, rows, heads), 0.01 * cost)
    queue = scheduler(costs, Budget(400, 64))
    queue.add([block((20,)) for _ in range(4)])
    batches = []
    while batch := queue.next(NOW).batch:
        batches.append(len(batch.items))
    assert batches == [3, 1]


def test_each_part_gets_its_own_rows() -> None:
    """Blocks may have different tasks."""
    first, second = (
        block((5, 4)),
        BlockEntry.of(
            TextBlock(np.array([3, 3]), np.arange(2), None), [7, 8], ("b",), Waiting("text", 9, 0, NOW), job="k"
        ),
    )
    batch = BlockBatch([first, second], NOW)
    assert {task: rows.tolist() for task, rows in batch.wanted.items()} == {"a": [0, 1], "b": [0, 1, 2, 3]}
    batch.deliver({"a": np.array([10, 11]), "b": np.array([20, 21, 22, 23])}, 1.0, 2.0)
    found = [part.outcome.outputs for part in (first, second) if isinstance(part.outcome, Computed)]
    assert [{task: own.tolist() for task, own in outputs.items()} for outputs in found] == [
        {"a": [10, 11], "b": [20, 21]},
        {"b": [22, 23]},
    ]


def test_equal_texts_share_a_row_and_others_have_none() -> None:
    made = TextBlock(np.array([3, 7]), np.array([1, ALONE, 0, 1]), None)
    whole = BlockEntry.of(made, [4, 5, 6, 8], ("a",), Waiting("text", 9, 0, NOW), job="j")
    assert sizes_of(whole) == [7, 3]
    texts, rows = whole.texts()
    assert (texts.tolist(), rows.tolist()) == ([0, 2, 3], [0, 1, 0])
    first = whole.cut(0, 1)
    assert first.texts()[0].tolist() == [0, 3]
    assert whole.texts()[0].tolist() == [2]


def test_a_row_over_the_budget_runs_alone() -> None:
    queue = scheduler(budget=Budget(20, 64))
    queue.add([block((50, 45, 3))])
    assert [sizes_of(queue.next(NOW).batch.items[0]) for _ in range(3)] == [[50], [45], [3]]  # type: ignore[union-attr]


def test_urgent_items_come_between_the_batches_of_a_block() -> None:
    """And no item joins a block's batch, nor a block an item's."""
    queue = scheduler()
    queue.add([block(), item(40, 9)])
    first = queue.next(NOW).batch
    assert first is not None
    urgent = item(5, 0)
    queue.add([urgent])
    second = queue.next(NOW).batch
    assert second is not None
    assert second.items[0] is urgent
    assert not any(isinstance(entry, BlockEntry) for entry in second.items)


def test_a_promise_to_urgent_items_bounds_the_batches_of_a_block() -> None:
    costs = CostModel()
    for cost, rows, heads in ((100, 2, 4), (200, 5, 10), (400, 6, 9), (50, 1, 1), (300, 9, 20), (120, 4, 12)) * 5:
        costs.observe("text", BatchShape(cost, rows, heads), 0.001 + 0.001 * cost)
    queue = scheduler(costs, Budget(10_000, 64), promised_wait_s={0: 0.1})
    queue.add([item(1, 0), block((40,) * 20)])
    queue.next(NOW)
    part = queue.next(NOW).batch
    assert part is not None
    assert part.predicted_s is not None
    assert len(sizes_of(part.items[0])) < 20
    assert part.predicted_s <= 0.05 + 1e-9


def test_a_block_is_late_when_none_of_its_rows_can_be_in_time() -> None:
    late = block(deadline_at=NOW - 1)
    queue = scheduler()
    queue.add([late])
    decision = queue.next(NOW)
    assert (decision.batch, decision.expired) == (None, [late])


@pytest.mark.parametrize("busy", [True, False])
def test_a_busy_device_waits_for_a_fuller_batch_only_if_nothing_else_waits(busy: bool) -> None:
    queue = scheduler(budget=Budget(1000, 64))
    queue.add([block((40, 39))])
    assert (queue.next(NOW, NOW + 1 if busy else None).batch is None) == busy
