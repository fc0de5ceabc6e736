"""The duties of a node: one that fails is tried again, and fills no log."""

from __future__ import annotations

import logging

import pytest

from tests.end_to_end.processes import until
from workers.node.periodic_duties import PeriodicDuties


def test_an_error_is_logged_once_until_the_duty_works_again(caplog: pytest.LogCaptureFixture) -> None:
    """While the broker is away, a warning every few seconds would hide all others."""
    outcomes = [*["away"] * 5, *["full"] * 3, "", "", "away"]
    runs: list[str] = []

    def duty() -> None:
        runs.append(outcomes[len(runs)] if len(runs) < len(outcomes) else "")
        if runs[-1]:
            raise ConnectionError(runs[-1])

    duties = PeriodicDuties()
    with caplog.at_level(logging.WARNING, logger="workers.node.periodic_duties"):
        duties.start({"reconciler": (0.001, duty)})
        until(lambda: len(runs) > len(outcomes))
        duties.stop()
    assert [record.getMessage() for record in caplog.records] == [
        "reconciler: ConnectionError: away; it is tried again every 0.001 s",
        "reconciler: ConnectionError: full; it is tried again every 0.001 s",
        "reconciler: works again",
        "reconciler: ConnectionError: away; it is tried again every 0.001 s",
        "reconciler: works again",
    ]
