"""The gate of a worker: envelopes run together, or one alone, and a stop reaches those that wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from workers.envelope.gate import EnvelopeInterrupted, Gate


class Runs:
    """Envelopes at a gate, each in a thread of its own; one that is inside stays until it is let go."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.gate = Gate()
        self.inside: set[str] = set()
        self.changed = threading.Condition()
        self._pool = pool
        self._leave: dict[str, threading.Event] = {}

    def start(self, name: str, *, alone: bool = False) -> Future[None]:
        self._leave[name] = threading.Event()
        return self._pool.submit(self._run, name, alone)

    def _run(self, name: str, alone: bool) -> None:
        with self.gate.passing(alone=alone):
            with self.changed:
                assert not (self.inside and alone)
                assert not any(other.startswith("alone") for other in self.inside)
                self.inside.add(name)
                self.changed.notify_all()
            self._leave[name].wait()
            with self.changed:
                self.inside.remove(name)

    def wait_for(self, *names: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.inside == set(names), timeout=30)

    def leave(self, name: str) -> None:
        self._leave[name].set()


@pytest.fixture
def runs() -> Iterator[Runs]:
    with ThreadPoolExecutor(8) as pool:
        yield Runs(pool)


def wait_for_waiters(runs: Runs, count: int) -> None:
    """Return once as many envelopes wait at the gate; the condition's own list of waiters says so."""
    while True:
        with runs.gate._changed:
            if len(runs.gate._changed._waiters) == count:  # type: ignore[attr-defined]
                return


def test_envelopes_run_together(runs: Runs) -> None:
    """None of them is suspected of anything."""
    done = [runs.start(name) for name in ("a", "b", "c")]
    runs.wait_for("a", "b", "c")
    for name in ("a", "b", "c"):
        runs.leave(name)
    for each in done:
        each.result(timeout=30)


def test_an_envelope_that_runs_alone_goes_first_and_by_itself(runs: Runs) -> None:
    """Those that run finish, those that come wait: also behind a second one that is to run alone."""
    first = runs.start("a")
    runs.wait_for("a")
    alone = runs.start("alone 1", alone=True)
    wait_for_waiters(runs, 1)
    late = runs.start("b")
    wait_for_waiters(runs, 2)
    runs.leave("a")
    runs.wait_for("alone 1")
    wait_for_waiters(runs, 1)
    other = runs.start("alone 2", alone=True)
    wait_for_waiters(runs, 2)
    runs.leave("alone 1")
    runs.wait_for("alone 2")
    runs.leave("alone 2")
    runs.wait_for("b")
    runs.leave("b")
    for each in (first, alone, other, late):
        each.result(timeout=30)


def test_a_stop_reaches_those_that_wait(runs: Runs) -> None:
    """They go back to their queue though the one that runs alone does not end."""
    alone = runs.start("alone", alone=True)
    runs.wait_for("alone")
    waiting = [runs.start("a"), runs.start("alone 2", alone=True)]
    wait_for_waiters(runs, 2)
    runs.gate.close()
    for each in waiting:
        with pytest.raises(EnvelopeInterrupted):
            each.result(timeout=30)
    runs.leave("alone")
    alone.result(timeout=30)


def test_an_error_inside_opens_the_gate_again(runs: Runs) -> None:
    """An attempt that fails alone must not keep the others out."""
    with pytest.raises(ValueError, match="broke"), runs.gate.passing(alone=True):
        raise ValueError("broke")
    done = runs.start("a")
    runs.wait_for("a")
    runs.leave("a")
    done.result(timeout=30)
