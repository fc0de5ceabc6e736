"""The turns of processes that write to one SQLite file."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from results_store.sql.engines import turns
from results_store.sql.engines.turns import Turns


def test_only_one_is_the_next(tmp_path: Path) -> None:
    """An own file handle each, as in two processes."""
    first, second, order = Turns(tmp_path / "a.db"), Turns(tmp_path / "a.db"), []

    def wait() -> None:
        with second.next():
            order.append("second")

    with closing(first), first.next():
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    second.close()
    assert order == ["first", "second"]


def test_a_next_that_stands_still_keeps_nobody_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONGEST_S", 0.01)
    stopped, other = Turns(tmp_path / "a.db"), Turns(tmp_path / "a.db")
    with closing(stopped), closing(other), stopped.next(), other.next():
        pass


def test_without_a_file_or_with_a_closed_one_there_are_no_turns(tmp_path: Path) -> None:
    with Turns(tmp_path / "missing" / "a.db").next():
        pass
    closed = Turns(tmp_path / "a.db")
    with closed.next():
        closed.close()
    with closed.next():  # opens it again
        pass
    closed.close()
