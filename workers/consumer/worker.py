"""A worker's main program: it starts the node, then Celery's worker on top of it, and stops both at a signal."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError
from workers.device.devices import Device
from workers.node.lanes import Lanes
from workers.node.node import Node
from workers.settings import Settings

logger = logging.getLogger(__name__)


def default_name(device: Device) -> str:
    """Return a unique name for a node: two nodes on one device have two names."""
    return f"argosy-{device.name.replace(':', '')}-{os.getpid()}@{socket.gethostname()}"


def run(
    settings: Settings,
    device: Device,
    *,
    broker_url: str,
    store_url: str,
    name: str | None = None,
    ready_file: Path | None = None,
) -> None:
    """Run a worker until SIGTERM or SIGINT. `ready_file` exists while it takes envelopes.

    Raises ConfigurationError if the worker cannot start, or if its device is given up while it runs.
    """
    faults: list[str] = []

    def give_up(reason: str) -> None:
        faults.append(reason)
        # Celery's own way to stop: no new envelopes, and the held ones return to their queues
        os.kill(os.getpid(), signal.SIGTERM)

    node = Node(
        settings,
        device,
        name=name or default_name(device),
        broker_url=broker_url,
        store_url=store_url,
        on_out_of_service=give_up,
    )
    try:
        node.start()
        _consume(node, broker_url, f"argosy+{store_url}", ready_file)
    finally:
        if ready_file:
            with suppress(OSError):
                ready_file.unlink(missing_ok=True)
        node.stop()
    if faults:
        raise ConfigurationError(faults[0])


def _consume(node: Node, broker_url: str, result_backend: str, ready_file: Path | None) -> None:
    from celery.signals import worker_ready, worker_shutting_down

    from workers.consumer.app import create_app

    def ready(**_: Any) -> None:
        logger.info("%s takes envelopes of %s", node.name, ", ".join(node.models))
        # the objects that exist now stay for good: a full collection need not scan them again, which takes 100 ms
        gc.collect()
        gc.freeze()
        if ready_file:
            _touch(ready_file)

    def shutting_down(**_: Any) -> None:
        # a signal handler must not wait; Celery's pool waits for the threads that `drain` ends
        grace_s = node.settings.worker.grace_s
        threading.Thread(target=node.drain, args=(grace_s,), name="drain").start()

    worker_ready.connect(ready, weak=False)
    worker_shutting_down.connect(shutting_down, weak=False)
    concurrency = node.settings.worker.concurrency
    app = create_app(broker_url, node.lanes.queues, concurrency=concurrency, result_backend=result_backend, node=node)
    # gossip and mingle share clocks and revocations between workers; here the store does that
    worker = app.Worker(hostname=node.name, loglevel="INFO", quiet=True, without_gossip=True, without_mingle=True)
    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)  # these log two lines per envelope; Flower shows the same
    node.lanes.follow(partial(_take_from, worker, node.lanes))
    worker.start()


def _touch(file: Path) -> None:
    """Make the ready file, as soon as disk space and descriptors allow."""
    try:
        file.touch()
    except OSError as error:
        logger.warning("the ready file cannot be made: %s; it is tried again", error)
        again = threading.Timer(1.0, _touch, (file,))
        again.daemon = True
        again.start()


def _take_from(worker: Any, lanes: Lanes) -> None:
    """Make a running worker consume new lanes. Called in a thread that is not the consumer's."""
    from kombu import Queue

    for name in lanes.queues:
        # first in the application's queues: a consumer that is being made starts with those
        if name not in worker.app.amqp.queues:
            worker.app.amqp.queues.add(Queue(name))
        consumer = worker.consumer
        if consumer is not None and not _is_taken_from(consumer, name):
            consumer.call_soon(_take_from_queue, consumer, name)


def _take_from_queue(consumer: Any, name: str) -> None:
    if consumer.task_consumer is not None and not _is_taken_from(consumer, name):
        consumer.add_task_queue(name)


def _is_taken_from(consumer: Any, name: str) -> bool:
    tasks = consumer.task_consumer
    return tasks is not None and bool(tasks.consuming_from(name))
