"""An installed older version, built once; only when asked for, as each test runs a fleet for a minute."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.upgrade import installed

_WANTED = os.environ.get("ARGOSY_TEST_UPGRADE") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "upgrade":
            item.add_marker(pytest.mark.timeout(300))
            if not _WANTED:
                item.add_marker(pytest.mark.skip(reason="minutes: `make test-upgrade` runs it"))


@pytest.fixture(scope="session")
def before() -> Path:
    """The Python of an environment with the wheel of `installed.COMMIT`."""
    return installed.python()
