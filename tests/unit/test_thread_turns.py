"""Python's threads take short turns while interactive work is about beside other work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from workers.node import thread_turns
from workers.node.thread_turns import ThreadTurns


@pytest.fixture(autouse=True)
def _usual() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(thread_turns.time, "monotonic", lambda: clock.now)
    return clock


def is_short() -> bool:
    return sys.getswitchinterval() == pytest.approx(thread_turns.SHORT_S)


def test_turns_are_short_from_an_urgent_envelope_on_for_a_second(clock: SimpleNamespace) -> None:
    turns = ThreadTurns()
    with turns.taking(urgent=False):
        assert not is_short()
        with turns.taking(urgent=True):
            assert is_short()
        clock.now += 0.9
        with turns.taking(urgent=False):
            assert is_short()
        clock.now += 0.2
        with turns.taking(urgent=False):
            assert not is_short()


def test_turns_are_short_only_while_other_envelopes_run(clock: SimpleNamespace) -> None:
    """A lone item would take a tenth longer."""
    turns = ThreadTurns()
    with turns.taking(urgent=True), turns.taking(urgent=True):
        assert not is_short()
    with turns.taking(urgent=False):
        assert is_short()
    assert not is_short()
