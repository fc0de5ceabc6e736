"""Ids that a worker has in Celery's set of revoked tasks: other applications' messages are discarded, ours are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from producers.wire.messages import new_id
from producers.wire.publisher import Publisher, message
from producers.wire.queues import TASK, queue_name
from results_store.celery_results.transactions import close_shared
from results_store.records import PendingEnvelope
from results_store.store import Store
from workers.consumer.app import create_app
from workers.consumer.requests import EnvelopeRequest

TIMEOUT_S = 60
QUEUE = queue_name("text")


def pending() -> PendingEnvelope:
    kept = {"model": "text", "priority": 0, "payload": b"{}", "content_type": "application/json"}
    return PendingEnvelope(id=new_id(), job=new_id(), created_at=1.5, accepted_at=1.5, attempts=0, **kept)  # type: ignore[arg-type]


@pytest.fixture
def app(broker_url: str, store: Store, store_url: str) -> Iterator[Celery]:
    """A worker's application and consumer, with a task that only answers."""
    app = create_app(broker_url, [QUEUE], concurrency=2, result_backend=f"argosy+{store_url}")
    app.ran = []

    @app.task(name=TASK, shared=False, bind=True, Request=EnvelopeRequest)  # type: ignore[untyped-decorator]
    def run(self: Any, *_: Any) -> str:
        app.ran.append(self.request.id)
        return "ran"

    with start_worker(app, pool="threads", perform_ping_check=False, shutdown_timeout=TIMEOUT_S):
        yield app
    app.close()
    close_shared(store_url)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_revoked_id_discards_what_has_no_row_in_the_store(app: Celery, broker_url: str) -> None:
    """The set may come from another application's worker at its start, or from a file."""
    durable, ids = pending(), [new_id(), new_id()]
    worker_state.revoked.update([durable.id, ids[0]])
    try:
        publisher = Publisher(broker_url)
        publisher.publish([message(durable)])
        publisher.close()
        revoked, other = (app.send_task(TASK, [{}], task_id=id_, queue=QUEUE) for id_ in ids)
        assert other.get(timeout=TIMEOUT_S) == "ran"
        with pytest.raises(TaskRevokedError):
            revoked.get(timeout=TIMEOUT_S)
        assert sorted(app.ran) == sorted([durable.id, other.id])
    finally:
        worker_state.revoked.clear()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_message_of_another_application_may_expire(app: Celery) -> None:
    """Celery's own header, with a date of any zone."""
    with pytest.raises(TaskRevokedError):
        app.send_task(TASK, [{}], queue=QUEUE, expires=-60).get(timeout=TIMEOUT_S)
    assert app.send_task(TASK, [{}], queue=QUEUE, expires=3600).get(timeout=TIMEOUT_S) == "ran"
