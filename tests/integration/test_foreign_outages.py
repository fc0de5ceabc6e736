"""Messages of other applications while the database is away, or their connection to Redis breaks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app import trace
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from producers.wire.queues import TASK, queue_name
from results_store.celery_results.transactions import close_shared
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.sqlite_outage import away
from workers.consumer import tasks
from workers.consumer.app import create_app
from workers.consumer.requests import EnvelopeRequest

TIMEOUT_S = 60
QUEUE = queue_name("text")


@pytest.fixture
def app(broker_url: str, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """A worker's application and consumer, with a task that only answers, and a short patience with the database."""
    app = create_app(broker_url, [QUEUE], concurrency=2, result_backend=f"argosy+{store_url}")
    app.conf.result_backend_max_retries = 1
    app.conf.result_backend_base_sleep_between_retries_ms = 1

    @app.task(name=TASK, shared=False)  # type: ignore[untyped-decorator]
    def run(*_: Any) -> str:
        return "ran"

    # as `argosy worker` runs tasks: an error outside a task is one of its thread
    app.use_fast_trace_task = True
    monkeypatch.setattr(trace, "_localized", [app._tasks, {"application/json"}, "host"])
    with start_worker(app, pool=app.conf.worker_pool, perform_ping_check=False, shutdown_timeout=TIMEOUT_S):
        yield app
    app.close()
    close_shared(store_url)


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")  # as in a worker
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_message_whose_state_cannot_be_stored_comes_again(
    app: Celery, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery stores that a task has started before it runs, and gives up after some tries."""
    returned = threading.Event()
    reject = EnvelopeRequest.reject

    def noted(self: Any, requeue: bool = False) -> None:
        reject(self, requeue)
        returned.set()

    monkeypatch.setattr(EnvelopeRequest, "reject", noted)
    assert app.send_task(TASK, [{}], queue=QUEUE).get(timeout=TIMEOUT_S) == "ran"  # the database is open
    with away(store_url):
        sent = app.send_task(TASK, [{}], queue=QUEUE)
        assert returned.wait(TIMEOUT_S)
    assert sent.get(timeout=TIMEOUT_S) == "ran"


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", [TASK, "celery.accumulate"])
def test_an_expired_message_waits_for_the_database_alone(app: Celery, store_url: str, name: str) -> None:
    """The consumer goes on, and the sender hears of it in the end."""
    assert app.send_task(TASK, [{}], queue=QUEUE).get(timeout=TIMEOUT_S) == "ran"  # the database is open
    app.conf.result_backend_max_retries = 1000
    with away(store_url):
        sent = app.send_task(name, [{}], queue=QUEUE, expires=-60)
        until(lambda: sent.id in worker_state.revoked)
        assert app.control.ping(timeout=10, limit=1)
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=TIMEOUT_S)


@pytest.mark.parametrize(("id_", "state"), [("task", "IGNORED"), ("other", "SUCCESS")])
def test_a_copy_of_a_running_message_is_no_answer(id_: str, state: str) -> None:
    """The run stores the answer of its task, also if Redis delivers the message again meanwhile. The same envelope in
    another task is answered.
    """
    app = Celery(set_as_current=False)
    node: Any = SimpleNamespace(run=lambda *_, **__: {"skipped": "held"})
    tasks.register(app, node)
    sent = app.tasks[TASK].apply([{"id": id_, "model": "text", "items": []}], task_id="task")
    assert sent.state == state
