"""The senders of refused messages, when the worker stops."""

from __future__ import annotations

import time
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

from producers.wire.errors import InvalidMessage
from results_store.errors import StoreUnavailable
from workers.consumer.refused_senders import RefusedSenders


def test_a_store_that_is_away_is_waited_for_once() -> None:
    """A worker that stops does not try each of a thousand refusals against it."""
    tried: list[str] = []

    def mark_as_failure(id_: str, _: object) -> None:
        tried.append(id_)
        closing.start()
        while not senders._closing:
            time.sleep(0.001)
        raise OSError("the store is away")

    app: Any = SimpleNamespace(backend=SimpleNamespace(mark_as_failure=mark_as_failure))
    senders = RefusedSenders(cast("Any", app))
    closing = Thread(target=senders.close)
    for number in range(20):
        senders.tell({"headers": {}, "properties": {"correlation_id": f"task {number}"}}, InvalidMessage("no"))
    senders._thread.shutdown()
    closing.join()
    assert tried == ["task 0"]


def test_a_worker_that_stops_returns_a_revoked_message_that_cannot_be_stored() -> None:
    """It is not acknowledged, so that its channel puts it back."""
    acknowledged: list[str] = []

    def store_revoked(_: str) -> None:
        closing.start()
        while not senders._closing:
            time.sleep(0.001)
        raise StoreUnavailable("the store is away")

    senders = RefusedSenders(cast("Any", SimpleNamespace(backend=SimpleNamespace())))
    closing = Thread(target=senders.close)
    for number in range(2):
        request = SimpleNamespace(store_revoked=store_revoked, acknowledge=lambda: acknowledged.append("one"))
        senders.revoke(request, f"expired {number}")
    senders._thread.shutdown()
    closing.join()
    assert not acknowledged
