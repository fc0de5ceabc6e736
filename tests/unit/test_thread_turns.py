"""Python's threads take short turns while interactive work is about."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from workers.node import thread_turns
from workers.node.thread_turns import ThreadTurns


@pytest.fixture(autouse=True)
def _usual() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_turns_are_short_from_an_urgent_envelope_on_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, usual = 100.0, sys.getswitchinterval()
    monkeypatch.setattr(thread_turns.time, "monotonic", lambda: now)
    turns = ThreadTurns()
    turns.begin(urgent=False)
    assert sys.getswitchinterval() == usual
    turns.begin(urgent=True)
    assert sys.getswitchinterval() == pytest.approx(thread_turns.SHORT_S)
    now += 0.9
    turns.begin(urgent=False)
    assert sys.getswitchinterval() == pytest.approx(thread_turns.SHORT_S)
    now += 0.2
    turns.begin(urgent=False)
    assert sys.getswitchinterval() == usual
