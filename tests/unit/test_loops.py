"""Loops that survive every exception, items that no exception loses, and the watch over their progress."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from producers.client.group_commit import GroupCommit, settle
from producers.wire.errors import Overloaded
from results_store.loops.inbox import Inbox
from results_store.loops.loop import Loop, ThreadProgress, doing, note, watch_here
from workers.node.node import Node
from workers.node.watchdog import ProgressWatch, limit_for


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt])
def test_a_loop_goes_on_after_any_exception(error: type[BaseException]) -> None:
    """The turn that raised is reported; the next turn follows."""
    turns: list[int] = []
    failed: list[BaseException] = []

    def turn() -> bool:
        turns.append(len(turns))
        if turns[-1] == 1:
            raise error
        return len(turns) < 4

    loop = Loop("test", turn, failed=failed.append)
    loop.start()
    loop.join()
    assert turns == [0, 1, 2, 3]
    assert [type(one) for one in failed] == [error]
    assert loop.over
    assert not loop.died


def test_a_loop_survives_its_own_handler() -> None:
    """An exception while another is handled ends no thread either."""
    turns: list[int] = []

    def turn() -> bool:
        turns.append(0)
        if len(turns) < 3:
            raise ValueError
        return False

    def failed(_: BaseException) -> None:
        raise SystemExit

    loop = Loop("test", turn, failed=failed)
    loop.start()
    loop.join()
    assert len(turns) == 3


def test_the_handler_may_end_a_loop() -> None:
    def turn() -> bool:
        raise ValueError

    loop = Loop("test", turn, failed=lambda _: False)
    loop.start()
    loop.join()
    assert loop.over


def test_an_inbox_keeps_what_was_taken() -> None:
    """Items are the thread's until it is done with them; failed items are returned once."""
    inbox: Inbox[int] = Inbox()
    for number in range(5):
        inbox.put(number)
    assert inbox.wait(0)
    assert inbox.take(3) == [0, 1, 2]
    assert len(inbox) == 2
    assert inbox.failed() == [0, 1, 2]
    assert inbox.failed() == []
    assert inbox.take(9, lambda size: size) == [3, 4]
    inbox.done()
    assert not inbox.wait(0)
    inbox.close()
    assert not inbox.wait(60), "closed: nothing to wait for"


def test_urgent_items_go_first_by_themselves_and_let_the_others_have_their_turns() -> None:
    inbox: Inbox[str] = Inbox()
    for item in ("bulk 1", "bulk 2", "bulk 3"):
        inbox.put(item)
    inbox.put("urgent 1", urgent=True)
    inbox.put("urgent 2", urgent=True)
    assert inbox.take(2) == ["urgent 1", "urgent 2"]
    inbox.put("urgent 3", urgent=True)
    assert inbox.failed() == ["urgent 1", "urgent 2"]
    assert inbox.take(2) == ["bulk 1", "bulk 2"]
    inbox.done()
    assert inbox.take(2) == ["urgent 3"]
    inbox.done()
    assert len(inbox) == 1
    assert inbox.wait(0)
    assert inbox.take(2) == ["bulk 3"]


def test_a_call_that_is_lost_delays_an_item_and_does_not_lose_it() -> None:
    """An exception may hit the thread between the call and the look: the next wait finds the item."""
    inbox: Inbox[int] = Inbox()
    inbox.put(1)
    inbox._calls.get()
    assert inbox.wait(0)


class Watch(ProgressWatch):
    """A watch whose looks are a second apart, unless the test says otherwise."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(10.0, clock=lambda: self.now)

    def look_for(self, seconds: float, step_s: float = 1.0) -> str | None:
        end = self.now + seconds
        while self.now < end:
            self.now += step_s
            if problem := self.look():
                return problem
        return None


def test_a_thread_without_turns_is_stuck() -> None:
    """A turn within the limit is progress, silence is not."""
    watch, progress = Watch(), ThreadProgress("batcher")
    watch.watch(progress)
    for _ in range(5):
        assert watch.look_for(9) is None
        progress.note()
    assert watch.look_for(60) == "the thread batcher made no progress for 11 s"


def test_a_named_wait_has_its_own_limit() -> None:
    watch, progress = Watch(), ThreadProgress("writer")
    watch.watch(progress)
    progress.note("a transaction", 90.0)
    assert watch.look_for(80) is None
    assert watch.look_for(60) == "the thread writer made no progress for 91 s (a transaction)"
    progress.note("waiting for its batches", math.inf)
    assert watch.look_for(100_000, 1000.0) is None


def test_a_gap_between_two_looks_is_no_silence() -> None:
    """The process was stopped for an hour: its threads get the time for a turn."""
    watch, progress = Watch(), ThreadProgress("batcher")
    watch.watch(progress)
    assert watch.look_for(5) is None
    assert watch.look_for(3600, 3600) is None
    progress.note()
    assert watch.look_for(9) is None


def test_a_thread_that_has_ended_is_noticed_at_once() -> None:
    """A loop that is over is no problem; a thread that ended before is."""
    watch = Watch()
    over = Loop("over", lambda: False)
    watch.watch_loop(over)
    over.start()
    over.join()
    assert watch.look_for(60) is None
    dead = ThreadProgress("dead")
    watch.watch(dead, lambda: True)
    assert watch.look() == "the thread dead ended"
    watch.leave(dead)
    assert watch.look() is None


def test_the_limit_follows_the_lease() -> None:
    assert [limit_for(lease_s) for lease_s in (3, 40, 60, 600)] == [10, 20, 30, 30]


def test_work_and_waits_are_noted_for_the_calling_thread() -> None:
    """A thread without a progress notes nothing; a wait ends where it began."""
    note("nothing", 1.0)
    progress = ThreadProgress("test")
    watch_here(progress)
    try:
        note("an envelope", 120.0)
        with doing("waiting for its batches", math.inf):
            assert progress.state[1:] == ("waiting for its batches", math.inf)
        assert progress.state[1:] == ("an envelope", 120.0)
    finally:
        watch_here(None)


def test_each_step_of_the_end_of_a_worker_has_its_own_limit() -> None:
    """The time of grace leaves none for the end of the device process."""
    progress = ThreadProgress("drain")
    steps: list[object] = []

    def note_step(*_: object) -> None:
        steps.append(progress.state[1:])

    node: Any = SimpleNamespace(
        _trainings=None,
        _held=SimpleNamespace(wait_until_none=note_step),
        _interrupt=note_step,
        _writers=(),
        settings=SimpleNamespace(worker=SimpleNamespace(batch_timeout_s=120.0)),
    )
    watch_here(progress)
    try:
        Node.drain(node, 30.0)
    finally:
        watch_here(None)
    assert steps == [("waiting for the held envelopes", 32.0), ("the end of the device process", 300.0)]


def test_the_group_of_a_failure_is_told_and_the_next_goes_on() -> None:
    """Nobody waits for ever for an item whose group raised, whatever it was."""
    outcomes: list[object] = []
    done = threading.Event()

    def work(group: list[int]) -> None:
        if 0 in group:
            raise SystemExit
        outcomes.append(group)
        done.set()

    gathering = GroupCommit("test", work, limit=1, failed=lambda group, error: outcomes.append((group, str(error))))
    gathering.put(0)
    gathering.put(1)
    assert done.wait(60)
    gathering.close()
    assert outcomes == [([0], "the thread test failed: SystemExit()"), [1]]


def test_a_thread_that_cannot_be_started_is_an_error_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gives no thread: the caller hears of it, and the next call starts it."""
    groups: list[list[int]] = []
    gathering: GroupCommit[int] = GroupCommit("test", groups.append, limit=1)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Overloaded, match="can't start new thread"):
            gathering.put(0)
    gathering.put(1)
    gathering.close()
    assert groups == [[1]]


def test_a_caller_that_gives_up_at_the_same_moment_harms_nobody() -> None:
    """Between the question and the answer the caller cancels: the thread that answers goes on."""

    class Late(Future[int]):
        def done(self) -> bool:
            before = super().done()
            self.cancel()
            return before

    settle(Late(), 1)
    settle(Late(), ValueError())
