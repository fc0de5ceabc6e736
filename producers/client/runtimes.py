"""The two ways in which a client waits: by blocking its thread, or in an event loop.

The client is written once, as coroutines that wait only through their runtime. The coroutines of a blocking `Runtime`
never yield, and `run` takes them to their end without an event loop. The coroutines of a `LoopRuntime` are awaited.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias, TypeVar

from producers.client.concurrency_limit import ConcurrencyLimit
from producers.client.group_commit import Promise, settle
from producers.wire.errors import ConfigurationError, InvalidInput, Overloaded
from producers.wire.forms import as_float
from results_store.loops.loop import TICK_S

T = TypeVar("T")

#: Calls that may wait for the database at the same time. Awaiting results takes none of them.
THREADS = 4

#: The number of callbacks from threads that run in the loop before its other work.
SLICE = 128

#: The number of calls of `submit` that are served in one round of the loop.
SUBMITS = 64

Event: TypeAlias = threading.Event | asyncio.Event
Queue: TypeAlias = queue.SimpleQueue[Any] | asyncio.Queue[Any]


class Runtime:
    """Wait by blocking the calling thread. Any number of threads may share it.

    A wait longer than `timeout_s` raises TimeoutError.
    """

    #: The types of series that `submit_many` takes.
    series: tuple[type, ...] = (Iterable,)

    def __init__(self) -> None:
        self.start_anew()

    def deliver(self, calls: Sequence[Callable[[], object]], /) -> None:
        """Run the callbacks of a thread of the client."""
        for call in calls:
            call()

    def promise(self) -> Promise:
        return Future()

    def event(self) -> Event:
        return threading.Event()

    def queue(self) -> Queue:
        return queue.SimpleQueue()

    async def outcome(self, promise: Any, timeout_s: float | None = None) -> Any:
        """Wait for a promise; return its result or raise its error."""
        return promise.result(_bearable(timeout_s))

    async def happened(self, event: Any, timeout_s: float) -> bool:
        """Wait until an event is set; return False if it is not set within `timeout_s`."""
        return bool(event.wait(_bearable(timeout_s)))

    async def take(self, queue_: Any, timeout_s: float | None = None) -> Any:
        """Wait for the next entry of a queue, and return it."""
        try:
            return queue_.get(timeout=_bearable(timeout_s))
        except queue.Empty:
            raise TimeoutError from None

    async def call(self, call: Callable[[], T]) -> T:
        """Make a call that may wait for the network or a disk, and return its result."""
        return call()

    async def share(self, key: Hashable, call: Callable[[], T]) -> T:
        """Make a call that reads. In an event loop, all who ask by the same key before it begins get its answer."""
        return await self.call(call)

    async def briefly(self, key: Hashable, call: Callable[[], T], timeout_s: float) -> T:
        """Wait for the answer of a call that reads, with all who ask by the same key. The call may take longer.

        Raises TimeoutError, at once if too many calls take longer.
        """
        mine: Future[T] = Future()
        if len(self._brief) >= THREADS and key not in self._brief:
            raise TimeoutError
        answer: Future[T] = self._brief.setdefault(key, mine)
        if answer is mine:
            try:
                threading.Thread(target=self._answer, args=(key, mine, call), name="argosy call", daemon=True).start()
            except BaseException:
                self._brief.pop(key, None)
                raise
        return answer.result(timeout_s)

    def _answer(self, key: Hashable, answer: Future[T], call: Callable[[], T]) -> None:
        try:
            outcome: object = call()
        except BaseException as error:  # noqa: BLE001 - callers wait for any error
            outcome = error
        self._brief.pop(key, None)
        settle(answer, outcome)

    async def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))  # noqa: ASYNC251 - not in an event loop

    async def turn(self) -> None:
        """Wait for a place among the calls of `submit`.

        An event loop keeps room for other work, even if a thousand calls begin together.
        """

    async def checkpoint(self) -> None:
        """Let an event loop run other work."""

    def limit(self, deadline: float, error: TimeoutError) -> AbstractAsyncContextManager[object]:
        """Return a context that raises `error` at `deadline` (monotonic). Threads check the time themselves."""
        return nullcontext()

    async def close(self, end: Callable[[], object]) -> None:
        """Call `end`, which closes the client. No further calls are accepted."""
        end()

    def start_anew(self) -> None:
        """Forget the threads and the loop of the parent, in a forked child."""
        self._brief: dict[Hashable, Future[Any]] = {}


def timeout_of(timeout_s: object) -> float | None:
    """Return a caller's timeout. Raises InvalidInput, also for NaN, which breaks the order of a loop's timers."""
    if timeout_s is None:
        return None
    given = as_float(timeout_s)
    if given is None or math.isnan(given):
        raise InvalidInput("timeout_s", f"must be a number of seconds or None, not {timeout_s!r:.80}")
    return given


def _bearable(timeout_s: float | None) -> float | None:
    """Return a timeout for Python's locks, which take neither negative nor very long ones."""
    return None if timeout_s is None or timeout_s > threading.TIMEOUT_MAX else max(0.0, timeout_s)


class LoopRuntime(Runtime):
    """Wait in the event loop that first uses it.

    Blocking calls are made in a few threads of its own, started when needed. The loop's default threads belong to the
    application.
    """

    series = (Iterable, AsyncIterable)

    def start_anew(self) -> None:
        super().start_anew()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._unbegun: dict[Hashable, asyncio.Future[Any]] = {}
        self._begun: dict[Hashable, asyncio.Future[Any]] = {}
        self._turnstile = ConcurrencyLimit(SUBMITS)
        self._closing: threading.Thread | None = None

    def deliver(self, calls: Sequence[Callable[[], object]], /) -> None:
        """Run the callbacks in the loop. May be called from any thread."""
        if self._loop is None or not calls:
            return
        try:
            self._loop.call_soon_threadsafe(self._run, calls, 0)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # the loop was closed without `close`: nobody waits any more

    def _run(self, calls: Sequence[Callable[[], object]], start: int) -> None:
        for call in calls[start : start + SLICE]:
            call()
        if start + SLICE < len(calls):
            asyncio.get_running_loop().call_soon(self._run, calls, start + SLICE)

    def promise(self) -> Promise:
        return self._here().create_future()

    def event(self) -> Event:
        return asyncio.Event()

    def queue(self) -> Queue:
        return asyncio.Queue()

    async def outcome(self, promise: Any, timeout_s: float | None = None) -> Any:
        if timeout_s is None:
            return await promise
        async with asyncio.timeout(timeout_s):
            return await promise

    async def happened(self, event: Any, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                return bool(await event.wait())
        except TimeoutError:
            return False

    async def take(self, queue_: Any, timeout_s: float | None = None) -> Any:
        async with asyncio.timeout(timeout_s):
            return await queue_.get()

    async def call(self, call: Callable[[], T]) -> T:
        """Make the call in a thread. Cancelling it only ends the wait. Raises Overloaded if there is no thread."""
        loop = self._here()
        if self._closing is not None:
            raise ConfigurationError("this client is closed; make a new client")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="argosy call")
        executor = self._executor
        try:
            asked = executor.submit(call)
        except RuntimeError as error:
            raise Overloaded(f"this process gets no more threads ({error}); try again") from error
        answer = asyncio.wrap_future(asked, loop=loop)
        try:
            while not (await asyncio.wait([answer], timeout=TICK_S))[0]:
                self._replace_if_broken(executor, asked)
        except BaseException:
            answer.cancel()
            raise
        return answer.result()

    async def share(self, key: Hashable, call: Callable[[], T]) -> T:
        shared = self._unbegun.get(key)
        if shared is None:
            shared = asyncio.ensure_future(self._share(key, call, after=self._begun.get(key)))
            shared.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # all may have gone by then
            self._unbegun[key] = shared
        answer: T = await asyncio.shield(shared)
        return answer

    async def briefly(self, key: Hashable, call: Callable[[], T], timeout_s: float) -> T:
        async with asyncio.timeout(timeout_s):
            return await self.share(key, call)

    async def _share(self, key: Hashable, call: Callable[[], T], after: asyncio.Future[Any] | None) -> T:
        """Make a call for all who have asked for it, after the one before it: the calls of many take one thread."""
        if after is not None:
            await asyncio.wait([after])
        mine = self._begun[key] = self._unbegun.pop(key)
        try:
            return await self.call(call)
        finally:
            if self._begun[key] is mine:
                del self._begun[key]

    def _replace_if_broken(self, executor: ThreadPoolExecutor, asked: Future[Any]) -> None:
        """Replace an executor of which a thread has ended. Raises Overloaded if the call may have gone with it."""
        if all(thread.is_alive() for thread in executor._threads):  # noqa: SLF001 - it has no other way to ask
            return
        if self._executor is executor:
            self._executor = None
            executor.shutdown(wait=False)
        if not asked.running() and not asked.done():
            raise Overloaded("a thread of this client ended, and this call was not made; try again")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def turn(self) -> None:
        await self._turnstile()

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    @asynccontextmanager
    async def limit(self, deadline: float, error: TimeoutError) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline) as limit:
                yield
        except TimeoutError as late:
            if limit.expired():
                raise error from late
            raise

    async def close(self, end: Callable[[], object]) -> None:
        if self._loop is not None and self._loop.is_closed():
            self._loop = None  # nobody waits there any more
        loop = self._here()
        if self._closing is not None:
            return
        closed, executor = loop.create_future(), self._executor

        def close() -> None:
            outcome = None
            try:
                end()
                if executor is not None:
                    executor.shutdown()  # waits for the calls under way
            except BaseException as error:  # noqa: BLE001 - the caller of `close` waits for any error
                outcome = error if isinstance(error, Exception) else RuntimeError(f"closing failed: {error!r}")
            self.deliver([partial(settle, closed, outcome)])

        closing = threading.Thread(target=close, name="argosy close", daemon=True)
        closing.start()
        self._closing = closing
        await closed
        closing.join()

    def _here(self) -> asyncio.AbstractEventLoop:
        """Return the running loop. Raises ConfigurationError if the client was first used in another loop."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError(
                "an AsyncClient belongs to the event loop that first used it; make a client for each loop"
            )
        return loop


def run(steps: Coroutine[Any, Any, T]) -> T:
    """Take a coroutine of a blocking `Runtime` to its end, in this thread, and return its result."""
    try:
        steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("a coroutine of a blocking Runtime has yielded")


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """Yield from an async generator of a blocking `Runtime`, in this thread."""
    assert isinstance(items, AsyncGenerator)
    try:
        while True:
            try:
                item = run(anext(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(items.aclose())
