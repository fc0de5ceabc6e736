"""What an attempt of an envelope leaves for later: results that are tried again, and results of paused tasks.

All other results of the attempt are committed at once. The commit notes the postponed ones in the envelope's row, and
the store's clock decides when a reconciler publishes it again: nothing waits in this worker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

import msgspec

from producers.wire.messages import Envelope, Item
from results_store.records import Claim, Claimed, PostponedResult, Postponement, Result, ResultState
from workers.batching.steady_clock import steady_time
from workers.envelope import outcomes
from workers.envelope.outcomes import Error
from workers.retries import RetrySettings


class PostponedWork:
    """The later work of a claimed envelope: call `due`, then `kept` with results, then `postponement`.

    Used by one thread. An envelope without a row cannot wait: all its results are final, and those that `pauses` hold
    are `refused`.
    """

    def __init__(
        self, policies: RetrySettings, claimed: Claimed, pauses: Callable[[], Collection[str]] = tuple
    ) -> None:
        self._policies = policies
        self._claimed = claimed
        self._ahead_s = claimed.now - steady_time()  # the store's clock, ahead of this worker's
        self._before = {(result.seq, result.task): result for result in claimed.postponed}
        self._pauses = pauses() if claimed.verdict is Claim.UNKNOWN else ()
        self.refused: list[Result] = []
        self._left: list[PostponedResult] = []
        self._paused_by: str | None = None
        self._error: Error | None = None

    @property
    def now(self) -> float:
        """The time by the store's clock."""
        return steady_time() + self._ahead_s

    def due(self, envelope: Envelope) -> Envelope:
        """Return the envelope with the items and tasks to compute now."""
        if self._pauses:
            return self._without_paused(envelope)
        if not self._before and not self._claimed.paused_tasks:
            return envelope
        items = [own for item in envelope.items if (own := _with_tasks(item, self._due_tasks(item)))]
        return msgspec.structs.replace(envelope, items=tuple(items))

    def _without_paused(self, envelope: Envelope) -> Envelope:
        """Refuse what is paused, of an envelope without a row."""
        whole = next(
            (one for one in (f"model:{envelope.model}", f"tenant:{envelope.tenant}") if one in self._pauses), ""
        )
        items = []
        for item in envelope.items:
            held = {task: whole or f"task:{task}" for task in item.tasks if whole or f"task:{task}" in self._pauses}
            self.refused += [_refused(envelope, item, task, subject) for task, subject in held.items()]
            if own := _with_tasks(item, [task for task in item.tasks if task not in held]):
                items.append(own)
        return msgspec.structs.replace(envelope, items=tuple(items))

    def _due_tasks(self, item: Item) -> list[str]:
        missing = [task for task in item.tasks if not self._before or (item.seq, task) in self._before]
        if self._claimed.verdict is not Claim.WORK:  # it ends now, whatever it waits for
            return missing
        return [task for task in missing if not self._is_later(item.seq, task)]

    def _is_later(self, seq: int, task: str) -> bool:
        now, ends_at = self.now, self._claimed.deadline_at
        before = self._before.get((seq, task)) or PostponedResult(seq, task, 0, now, None)
        if ends_at is not None and ends_at <= now:  # it expires
            return False
        if task in self._claimed.paused_tasks:
            self._paused_by = f"task:{task}"
            self._left.append(before._replace(due_at=ends_at))
            return True
        if before.due_at is not None and before.due_at > now and before.tries:
            self._left.append(before)
            return True
        return False

    def kept(self, results: Iterable[Result]) -> list[Result]:
        """Return the results that are final. The others are tried again."""
        if self._claimed.verdict is not Claim.WORK:
            return [*results]
        return [final for result in results if (final := self._final(result))]

    def _final(self, result: Result) -> Result | None:
        error, policy = result.error, self._policies.of(result.task)
        if result.state is not ResultState.FAILED or error is None or not policy.covers(error):
            return result
        now, before = self.now, self._before.get((result.seq, result.task))
        tries = before.tries + 1 if before else 1
        since = before.since if before and before.tries else now
        ends_at = min(since + policy.within_s, self._claimed.deadline_at or since + policy.within_s)
        wait_s = policy.wait_s(tries, ends_at - now, error.get("retry_after_s") or 0.0)
        if wait_s is None:
            return replace(result, error=_after(error, tries, now - since))
        self._left.append(PostponedResult(result.seq, result.task, tries, since, now + wait_s))
        self._error = error
        return None

    @property
    def number(self) -> int:
        """The number of results that are left for later."""
        return len(self._left)

    def postponement(self) -> Postponement | None:
        """Return what is left for later; None if the envelope has ended."""
        return Postponement(tuple(self._left), self._paused_by, self._error) if self._left else None


def _with_tasks(item: Item, tasks: list[str]) -> Item | None:
    if len(tasks) == len(item.tasks):
        return item
    params = {task: own for task, own in item.params.items() if task not in item.tasks or task in tasks}
    return msgspec.structs.replace(item, tasks=tuple(tasks), params=params) if tasks else None


def _refused(envelope: Envelope, item: Item, task: str, subject: str) -> Result:
    kind, _, name = subject.partition(":")
    message = f"{kind} {name!r} is paused, and an item that is not durable cannot wait; submit it with durable=True"
    return outcomes.result(envelope, item, task, ResultState.FAILED, {"kind": "Paused", "message": message})


def _after(error: Error, tries: int, seconds: float) -> Error:
    """Return the error of a result that was tried several times."""
    if tries == 1:
        return error
    return {**error, "message": f"{error['message']} (tried {tries} times in {seconds:.0f} s)", "attempts": tries}
