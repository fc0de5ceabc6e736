"""The composed stack, brought up once for all tests here; only when asked for, as it takes minutes and wants root."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.stack import engine, stand_ins
from tests.stack.stack import Stack, up

_WANTED = os.environ.get("ARGOSY_TEST_STACK") == "1"
_STARTED_AT = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "stack":
            item.add_marker(pytest.mark.timeout(1800))  # an engine, base images, an image with PyTorch, the models
            if not _WANTED:
                item.add_marker(pytest.mark.skip(reason="minutes, and mostly Docker: `make test-stack` runs it"))


def say(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED_AT:5.0f} s] {text}", flush=True)  # noqa: T201 - somebody waits for minutes


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with engine.engine(say) as docker:
        variables = {"REDIS_PASSWORD": "any", "POSTGRES_PASSWORD": "any", "FLOWER_PASSWORD": "any"}
        replaced = stand_ins.provide(docker, stand_ins.wanted(variables), say)
        say(f"base images: {'stand-ins for ' + ', '.join(replaced) if replaced else 'the real ones'}")
        with up(docker, say) as running:
            yield running
