"""Calls of an event loop that are shared: a single answer for all who ask before the call begins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from producers.client.runtimes import LoopRuntime


class Store:
    """Answers with the number of the call, once it is allowed to."""

    def __init__(self) -> None:
        self.calls = 0
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def look(self) -> int:
        self.calls += 1
        number = self.calls
        self.began.release()
        assert self.may_end.acquire(timeout=30)
        return number


def _in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


async def _began(store: Store) -> None:
    await asyncio.to_thread(store.began.acquire, timeout=30)


def _asking(runtime: LoopRuntime, call: Callable[[], int], count: int) -> list[asyncio.Task[int]]:
    return [asyncio.ensure_future(runtime.share("job", call)) for _ in range(count)]


@_in_a_loop
async def test_an_answer_is_never_older_than_its_question_and_many_questions_take_two_calls() -> None:
    runtime, store = LoopRuntime(), Store()
    first = _asking(runtime, store.look, 3)
    await _began(store)
    later = _asking(runtime, store.look, 100)  # the first call may have read already
    later[0].cancel()  # costs the others nothing
    store.may_end.release(2)
    assert await asyncio.gather(*first) == [1] * 3
    assert await asyncio.gather(*later[1:]) == [2] * 99
    assert store.calls == 2
    again = _asking(runtime, store.look, 1)
    store.may_end.release()
    assert await asyncio.gather(*again) == [3]
    assert (runtime._begun, runtime._unbegun) == ({}, {})  # nothing is kept of a job
    await runtime.close(lambda: None)


@_in_a_loop
async def test_an_error_reaches_all_who_asked_and_nobody_who_asks_afterwards() -> None:
    runtime = LoopRuntime()

    def fails() -> int:
        raise LookupError("no job")

    outcomes = await asyncio.gather(*_asking(runtime, fails, 3), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LookupError] * 3
    assert await runtime.share("job", lambda: 7) == 7
    await runtime.close(lambda: None)


@_in_a_loop
async def test_other_keys_do_not_wait() -> None:
    runtime, store = LoopRuntime(), Store()
    slow = _asking(runtime, store.look, 1)
    await _began(store)
    assert await runtime.share("another job", lambda: 7) == 7
    store.may_end.release()
    assert await asyncio.gather(*slow) == [1]
    with pytest.raises(RuntimeError, match="another"):
        await runtime.share("another job", _refuse)
    await runtime.close(lambda: None)


def _refuse() -> int:
    raise RuntimeError("another error")
