"""The Celery application of a worker node: every setting with its reason."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from celery import Celery, bootsteps
from kombu import Queue

from producers.wire.queues import PRIORITY_SEPARATOR, PRIORITY_STEPS
from workers.consumer import tasks
from workers.node.lanes import TurnsOf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workers.node.node import Node


def create_app(
    broker_url: str,
    queues: Iterable[str],
    *,
    concurrency: int,
    result_backend: str | None = None,
    node: Node | None = None,
) -> Celery:
    """Return the Celery application that consumes `queues`, in turns by the weights of the node's lanes.

    Without a `node` it can inspect and monitor a fleet, but has no task to run.
    """
    app = Celery("argosy", broker=broker_url, set_as_current=False)
    app.conf.update(_settings(broker_url, queues, concurrency, result_backend))
    if node is not None:
        # within one priority the lanes and the models take turns; urgent comes first across all of them either way
        app.conf.broker_transport_options["queue_order_strategy"] = TurnsOf(node.lanes)
        tasks.register(app, node)
        app.steps["worker"].add(_showing(node))
    return app


def _showing(node: Node) -> type[bootsteps.StartStopStep]:
    """Return what has a worker's statistics, which Flower shows, tell what is served."""

    class ShowServed(bootsteps.StartStopStep):  # type: ignore[misc] # Celery is untyped
        def create(self, worker: Any) -> None:
            """There is nothing to start."""

        def info(self, worker: Any) -> dict[str, Any]:
            state = node.state()
            return state.shown() if state else {}

    return ShowServed


def _settings(broker_url: str, queues: Iterable[str], concurrency: int, result_backend: str | None) -> dict[str, Any]:
    return {
        # one queue for each model and lane; `task_create_missing_queues` off so that a misspelt queue is an error, not a silent list
        "task_queues": [Queue(queue) for queue in queues],
        "task_create_missing_queues": False,
        # acknowledged only when the task has returned, which is after its results are committed
        "task_acks_late": True,
        # a failure is a decoded, recorded outcome (or an unreadable message): redelivery would not mend it
        "task_acks_on_failure_or_timeout": True,
        # a killed worker's envelope comes back; results are idempotent, so a second run costs only compute
        "task_reject_on_worker_lost": True,
        # for whoever calls the task by name from Celery code of their own; our messages ask for no result there
        "result_backend": result_backend,
        # Flower sees each envelope received, started and succeeded
        "worker_send_task_events": True,
        "task_track_started": True,
        "worker_consumer": "workers.consumer.batched_events:Consumer",
        # an envelope's thread mostly waits for its micro-batches: threads, and many of them
        "worker_pool": "threads",
        "worker_concurrency": concurrency,
        # the slots are the prefetch: one more envelope held here is one that another worker could be running
        "worker_prefetch_multiplier": 1,
        # JSON, and MessagePack where bytes travel; never pickle
        "accept_content": ["json", "msgpack"],
        "task_serializer": "json",
        # wait for the broker for ever, at start and after: a fleet must survive its broker's restart
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # what runs goes on running when the connection breaks: its results are idempotent and its redelivery recognised
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # kombu's own, proof against what is no message
        "broker_transport": "workers.consumer.transport:Transport",
        "broker_transport_options": {
            "priority_steps": PRIORITY_STEPS,
            "sep": PRIORITY_SEPARATOR,
            # kombu's own redelivery is the last resort: leases and the reconciler come long before it
            "visibility_timeout": 6 * 3600,
            # a silent network is noticed in seconds instead of the kernel's minutes
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        **({"broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}} if broker_url.startswith("rediss://") else {}),
        # the worker's log is the operator's; Celery leaves the root logger alone
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
        "timezone": "UTC",
    }
