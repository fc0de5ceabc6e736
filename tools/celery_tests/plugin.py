"""The pytest plugin of a run: it notes each test's outcome in a file, and skips the tests that the file has."""

from __future__ import annotations

import inspect
import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from tools.celery_tests import noted, worst

#: Two tests of a flag wait for minutes for things that must not happen.
EXCLUDED = ("test_enabling_flag_allow_error_cb", "test_disabling_flag_allow_error_cb")

#: Tests that call these look at the channels and keys of Celery's own Redis backend.
OF_REDIS = ("get_active_redis_channels()", "backend.get_key_for_group(")

_NOTED = Path(os.environ["CELERY_TESTS_NOTED"])
_found: defaultdict[str, set[str]] = defaultdict(set)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    done = noted(_NOTED)
    items[:] = [item for item in items if item.nodeid not in done and not item.name.startswith(EXCLUDED)]
    of_redis = os.environ["TEST_BACKEND"].startswith("redis")
    for item in items:
        item.add_marker(pytest.mark.timeout(90), append=False)
        source = inspect.getsource(item.function)
        if not of_redis and any(call in source for call in OF_REDIS):
            item.add_marker(pytest.mark.skip(reason="looks into the Redis backend"))


def pytest_configure(config: pytest.Config) -> None:
    for name in ("flaky", "timeout"):
        config.addinivalue_line("markers", f"{name}: of Celery's tests")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not hasattr(report, "wasxfail"):
        _found[report.nodeid].add(report.outcome)
    elif report.when == "call":
        _found[report.nodeid].add("xfailed" if report.skipped else "xpassed")


def pytest_runtest_logfinish(nodeid: str) -> None:
    with _NOTED.open("a") as file:
        file.write(json.dumps([nodeid, worst(_found.pop(nodeid))]) + "\n")
