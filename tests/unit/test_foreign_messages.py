"""What a Celery message says beside its envelope: the checks before its task runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from producers.wire.errors import InvalidMessage
from producers.wire.messages import JSON
from workers.consumer.foreign_messages import check


def message(embedded: object, **headers: Any) -> Any:
    body = [[{"model": "m", "items": []}], {}, embedded]
    return SimpleNamespace(headers={"task": "argosy.envelope", "id": "x", **headers}, content_type=JSON, payload=body)


@pytest.mark.parametrize("embedded", [None, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
def test_a_message_without_further_tasks_is_run(embedded: object) -> None:
    assert check(message(embedded)) is None


@pytest.mark.parametrize("name", ["id", "delivery_info", "reply_to", "is_eager", "task", "hostname"])
@pytest.mark.parametrize("value", [[], {}, None, "x", 5])
def test_a_body_overrides_nothing_of_its_request(name: str, value: object) -> None:
    """Celery would take the field for the request's own: a list for an id fails where the failure is stored."""
    with pytest.raises(InvalidMessage, match="last part"):
        check(message({name: value}))
