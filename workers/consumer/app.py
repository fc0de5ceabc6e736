"""The Celery application of a worker node, with the reason for each setting."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from celery import Celery, bootsteps
from celery.app.amqp import Queues as CelerysQueues
from kombu import Queue

from producers.wire.errors import ConfigurationError
from producers.wire.queues import PRIORITY_SEPARATOR, PRIORITY_STEPS
from producers.wire.sockets import CONSUMER, Sentinels, sentinel_options, sentinels, unix_socket
from results_store.celery_results.backend import ArgosyBackend
from workers.consumer import remote_control, tasks
from workers.consumer.requests import EnvelopeRequest
from workers.consumer.slots import AWAY
from workers.node.intake import Unbounded
from workers.node.lanes import LaneTurnsFactory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workers.node.node import Node


class Queues(CelerysQueues):  # type: ignore[misc] # Celery is untyped
    """The queues that the worker consumes. It may send to any other: callbacks go to queues of other applications."""

    def __missing__(self, name: str) -> Queue:
        return Queue(name)  # not kept: strangers choose the names


class Results(ArgosyBackend):
    """The result backend of a worker, at the application's `result_backend`.

    A state that cannot be stored is no failure of its task: the pool of threads gives the message back.
    """

    def __init__(self, app: Celery, url: str | None = None, **options: Any) -> None:
        super().__init__(app, url or app.conf.result_backend.removeprefix("argosy+"), **options)

    def mark_as_failure(self, task_id: str, exc: Exception, *arguments: Any, **options: Any) -> Any:
        if isinstance(exc, AWAY) and options.get("store_result", True):
            raise exc
        return super().mark_as_failure(task_id, exc, *arguments, **options)


def create_app(
    broker_url: str,
    queues: Iterable[str],
    *,
    concurrency: int,
    result_backend: str | None = None,
    node: Node | None = None,
) -> Celery:
    """Return the Celery application that consumes `queues`, in turns by the weights of the node's lanes.

    Without a `node` it can inspect and monitor a fleet, but has no task to run. Raises ConfigurationError for an option
    in the URL that kombu does not know.
    """
    group = _group(broker_url)
    app = Celery("argosy", broker=group.celery_url if group else broker_url, set_as_current=False)
    app.conf.update(_settings(broker_url, queues, concurrency, result_backend))
    if group:
        app.conf.broker_transport = "workers.consumer.transport:SentinelTransport"
        asking = sentinel_options(CONSUMER) | group.own
        app.conf.broker_transport_options |= {"master_name": group.master, "sentinel_kwargs": asking}
    app.amqp.queues_cls = Queues
    app.control_cls = remote_control.Control
    app.Task.Request = EnvelopeRequest  # also of Celery's own tasks
    if result_backend:
        app.backend_cls = Results
    app.intake = Unbounded() if node is None else node.taking
    if node is not None:
        # within a priority, lanes and models take turns; more urgent messages come first across all of them
        app.conf.broker_transport_options["queue_order_strategy"] = LaneTurnsFactory(node.lanes)
        tasks.register(app, node)
        app.steps["worker"].add(_showing(node))
    return app


def _group(broker_url: str) -> Sentinels | None:
    """Return the sentinels of a URL, if it names some, and check the options of other URLs."""
    try:
        if group := sentinels(broker_url):
            return group
        known = ("virtual_host",) if unix_socket(broker_url) else ()
    except ValueError as error:
        raise ConfigurationError(f"broker: {error}") from None
    for name in parse_qs(urlsplit(broker_url).query):
        if not name.startswith("ssl_") and name not in known:
            raise ConfigurationError(f"broker: its URL has the option {name!r}, which workers do not know; take it out")
    return None


def _showing(node: Node) -> type[bootsteps.StartStopStep]:
    """Return a worker step that adds the served models to the worker's statistics, which Flower shows."""

    class ShowServed(bootsteps.StartStopStep):  # type: ignore[misc] # Celery is untyped
        def create(self, worker: Any) -> None:
            """Create nothing: the step has nothing to start."""

        def info(self, worker: Any) -> dict[str, Any]:
            state = node.state()
            return state.shown() if state else {}

    return ShowServed


def _settings(broker_url: str, queues: Iterable[str], concurrency: int, result_backend: str | None) -> dict[str, Any]:
    return {
        # a queue per model and lane
        "task_queues": [Queue(queue) for queue in queues],
        # acknowledged only when the task has returned, after its results are committed
        "task_acks_late": True,
        # a failure is a decoded, recorded outcome (or an unreadable message): redelivery would not help
        "task_acks_on_failure_or_timeout": True,
        # the envelope of a killed worker comes back; results are idempotent, so a second run costs only compute
        "task_reject_on_worker_lost": True,
        # for callers from other Celery applications, by the task's name; Argosy's own messages request no result there
        "result_backend": result_backend,
        # Flower sees each envelope received, started and succeeded
        "worker_send_task_events": True,
        "task_track_started": True,
        "worker_consumer": "workers.consumer.batched_events:Consumer",
        # an envelope's thread mostly waits for its micro-batches, so there are many threads
        "worker_pool": "workers.consumer.slots:TaskPool",
        "worker_concurrency": concurrency,
        # the slots are the prefetch: any further envelope held here could run in another worker
        "worker_prefetch_multiplier": 1,
        # JSON, and MessagePack for bytes; never pickle
        "accept_content": ["json", "msgpack"],
        "task_serializer": "json",
        # wait for the broker without limit, at start and later: a fleet must survive its broker's restart
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # running envelopes continue when the connection breaks: results are idempotent and a redelivery is recognised
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # kombu's own transport, guarded against invalid messages
        "broker_transport": "workers.consumer.transport:Transport",
        "broker_transport_options": {
            "priority_steps": PRIORITY_STEPS,
            "sep": PRIORITY_SEPARATOR,
            # kombu's own redelivery is the last resort: leases and the reconciler act long before it
            "visibility_timeout": 6 * 3600,
            # notice a silent network in seconds instead of the kernel's hours
            **CONSUMER,
        },
        **({"broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}} if broker_url.startswith("rediss://") else {}),
        # the worker's log belongs to the operator; Celery leaves the root logger alone
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
        "timezone": "UTC",
    }
