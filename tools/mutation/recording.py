"""A plugin of pytest: notes which test runs, for coverage, and how it ended, for the judge.

Lines that run in pytest's own process belong to the function of the test. Processes that a test starts may live on for
other tests of its file, so that their lines belong to the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

#: The folder for the outcomes: a line for each phase of a test.
FOLDER = "ARGOSY_RECORDED"

#: The context of the processes that a test starts: its file.
FILE = "ARGOSY_TEST_FILE"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note the test that runs."""
    os.environ[FILE] = f"{item.nodeid.partition('::')[0]}::"
    if running := coverage.Coverage.current():
        running.switch_context(function_of(item.nodeid))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note the outcome of a phase, and its seconds."""
    report = yield
    told = {"test": function_of(item.nodeid), "outcome": report.outcome, "seconds": round(report.duration, 3)}
    with Path(os.environ[FOLDER], f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(told) + "\n")
    return report


def function_of(nodeid: str) -> str:
    """Return the function of a test, without the case: ``tests/unit/test_x.py::Class::test_name``."""
    return nodeid.partition("[")[0]
