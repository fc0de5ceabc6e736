"""Tests of what only a GPU can show. `make test-gpu` runs them, and with them the tests of models, on that GPU."""

from __future__ import annotations

import pytest

from tests.serving import DEVICE
from workers.device import devices
from workers.device.devices import Device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "gpu" and not DEVICE.startswith("cuda"):
            item.add_marker(pytest.mark.skip(reason="a GPU: `make test-gpu` runs it"))


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The first GPU. Who asks for a run on a GPU and has none is told so by a failure."""
    return next(device for device in devices.discover() if device.is_cuda)
