"""What goes together when many ask at once: the gathering thread, the outbox's door, the loop's turnstile."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest

from producers.client.concurrency_limit import ConcurrencyLimit
from producers.client.group_commit import GroupCommit, settle
from producers.client.pending_results import PendingResult
from producers.client.request import Request
from producers.client.sending import outbox
from producers.client.sending.orders import Order
from producers.client.sending.outbox import Waiting
from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, Overloaded


def test_what_comes_while_a_group_is_done_goes_together() -> None:
    """A lone one goes at once; the others wait for it, and then go as one group, in order. No timer is involved."""
    groups: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(group: list[int]) -> None:
        groups.append(group)
        begun.set()
        go_on.wait(60)

    gathering = GroupCommit("test", work, limit=100)
    gathering.put(0)
    assert begun.wait(60)
    for number in range(1, 6):
        gathering.put(number)
    go_on.set()
    gathering.close()
    assert groups == [[0], [1, 2, 3, 4, 5]]


def test_a_client_that_was_made_before_gevent_patched_its_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its locks are those of threads, and its new threads would be greenlets: they would wait for each other for ever."""
    gathering: GroupCommit[int] = GroupCommit("test", lambda _: None, limit=100)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Lock", threading.RLock)
        with pytest.raises(ConfigurationError, match="patch it first, or make a new client"):
            gathering.put(0)
    gathering.put(1)
    gathering.close()


def test_a_group_has_a_limit_and_closing_does_the_rest() -> None:
    """Memory and transactions stay bounded; nothing that was put in is dropped."""
    groups: list[list[int]] = []
    go_on = threading.Event()

    def work(group: list[int]) -> None:
        go_on.wait(60)
        groups.append(group)

    gathering = GroupCommit("test", work, limit=3)
    for number in range(8):
        gathering.put(number)
    go_on.set()
    gathering.close()
    assert [number for group in groups for number in group] == list(range(8))
    assert max(len(group) for group in groups) <= 3
    with pytest.raises(ConfigurationError, match="closed"):
        gathering.put(9)
    gathering.close()


def test_nothing_is_started_before_it_is_used() -> None:
    """A client that only reads has no outbox thread."""
    before = threading.active_count()
    gathering: GroupCommit[int] = GroupCommit("test", lambda group: None, limit=3)
    assert threading.active_count() == before
    gathering.close()


def test_a_caller_that_gave_up_is_left_alone() -> None:
    """A cancelled future cannot be given a result."""
    promise: Future[int] = Future()
    promise.cancel()
    settle(promise, 1)
    assert promise.cancelled()


def order(size: int, *, lone: bool = True) -> Order:
    request = Request.check(Catalogue.builtin(), "topic", priority="bulk")
    item = request.item(0, "x", field="input")
    return Order(
        request, [item], "job", Future(), pending=PendingResult("job", 0, ["topic"]) if lone else None, size=size
    )


def test_the_door_counts_items_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused is what is too much, in number or in size; one alone never is, and chunks of a job are not counted."""
    monkeypatch.setattr(outbox, "WAITING_ITEMS", 2)
    monkeypatch.setattr(outbox, "WAITING_BYTES", 100)
    waiting = Waiting()
    huge = order(1_000)
    waiting.add(huge)
    with pytest.raises(Overloaded, match="1 items of this client wait"):
        waiting.add(order(1))
    waiting.add(order(1_000, lone=False))
    waiting.remove([huge])
    two = [order(1), order(1)]
    for one in two:
        waiting.add(one)
    with pytest.raises(Overloaded, match="2 items of this client wait"):
        waiting.add(order(1))


def test_the_turnstile_lets_the_loop_breathe() -> None:
    """A thousand tasks that start together pass in rounds, in order; a cancelled one holds nobody up."""

    async def main() -> None:
        turnstile = ConcurrencyLimit(10)
        passed: list[int] = []
        rounds = 0

        async def go(number: int) -> None:
            await turnstile()
            passed.append(number)

        tasks = [asyncio.ensure_future(go(number)) for number in range(100)]
        await asyncio.sleep(0)
        tasks[50].cancel()
        while not all(task.done() for task in tasks):
            before = len(passed)
            await asyncio.sleep(0)
            rounds += 1
            assert len(passed) - before <= 20
        assert passed == [number for number in range(100) if number != 50]
        assert rounds >= 8

    asyncio.run(main())
