"""A worker's main program: it starts the node, then Celery's worker on top of it, and stops both at a signal."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import itertools
import logging
import math
import os
import signal
import socket
import threading
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from producers.wire.command_line import LeaveTextOut
from producers.wire.errors import ConfigurationError
from producers.wire.validation.struct_types import build_struct_types
from results_store.loops.loop import TICK_S, Loop, ThreadProgress, watch_here
from workers.device.devices import Device
from workers.models.sources.model_source import cache_folder
from workers.node.lanes import Lanes
from workers.node.node import Node
from workers.settings import Settings

logger = logging.getLogger(__name__)


#: The most seconds for the start of the consumer, and for the end of a worker without its device, after `grace_s`.
END_LIMIT_S = 60.0

#: The most nodes of one device on a host that are counted; a further one has its process id in its name.
MOST_NODES = 64


def default_name(device: Device, broker_url: str) -> str:
    """Return the name of a node, the same at each start: from the device and the host.

    Two nodes on one device have two names: a process keeps its name locked until it ends, however it ends.
    """
    for number in itertools.count(1):
        name = f"argosy-{device.name.replace(':', '')}{'' if number == 1 else f'-{number}'}@{socket.gethostname()}"
        digest = hashlib.sha256(f"{broker_url}\n{name}".encode()).hexdigest()[:20]
        with suppress(OSError):  # the lock, or the file of another user
            _lock(cache_folder() / "nodes" / f"{digest}.lock")
            return name
        if number > MOST_NODES:
            break
    return f"argosy-{device.name.replace(':', '')}-{os.getpid()}@{socket.gethostname()}"


def _lock(file: Path) -> None:
    """Lock a file for the life of this process. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise


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
    build_struct_types()
    faults: list[str] = []

    def not_ready() -> None:
        if ready_file:
            with suppress(OSError):
                ready_file.unlink(missing_ok=True)

    def give_up(reason: str) -> None:
        faults.append(reason)
        ending = ThreadProgress("main")
        ending.note("the end without a device", settings.worker.grace_s + END_LIMIT_S)
        node.watchdog.watch(ending)
        # Celery's own way to stop: no new envelopes, and the held ones return to their queues
        os.kill(os.getpid(), signal.SIGTERM)

    node = Node(
        settings,
        device,
        name=name or default_name(device, broker_url),
        broker_url=broker_url,
        store_url=store_url,
        on_out_of_service=give_up,
        on_end=not_ready,
    )
    not_ready()  # the file of a process that was killed
    try:
        node.start()
        _consume(node, broker_url, f"argosy+{store_url}", ready_file)
    finally:
        not_ready()
        node.stop()
    if faults:
        raise ConfigurationError(faults[0])


def _consume(node: Node, broker_url: str, result_backend: str, ready_file: Path | None) -> None:
    from celery.signals import worker_ready, worker_shutting_down

    from workers.consumer.app import create_app

    build_struct_types()  # those of the models' classes and of the consumer as well

    def ready(**_: Any) -> None:
        logger.info("%s takes envelopes of %s", node.name, ", ".join(node.models))
        # the objects that exist now stay for good: a full collection need not scan them again, which takes 100 ms
        gc.collect()
        gc.freeze()
        if ready_file:
            _touch(ready_file)

    stopping = threading.Event()
    consumer, slots = ThreadProgress("consumer"), ThreadProgress("slots")
    slots.note("waiting for envelopes", math.inf)

    def shutting_down(**_: Any) -> None:
        # a signal handler must not wait; Celery's pool waits for the threads that `drain` ends
        node.watchdog.leave(consumer)
        stopping.set()

    def drain() -> bool:
        if not stopping.wait(TICK_S):
            return True
        node.drain(node.settings.worker.grace_s)
        return False

    worker_ready.connect(ready, weak=False)
    worker_shutting_down.connect(shutting_down, weak=False)
    concurrency = node.settings.worker.concurrency
    app = create_app(broker_url, node.lanes.queues, concurrency=concurrency, result_backend=result_backend, node=node)
    # gossip and mingle share clocks and revocations between workers; here the store does that
    worker = app.Worker(hostname=node.name, loglevel="INFO", quiet=True, without_gossip=True, without_mingle=True)
    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)  # these log two lines per envelope; Flower shows the same
    logging.getLogger("celery.app.trace").addFilter(_is_no_return)
    logging.getLogger("celery.app.trace").addFilter(LeaveTextOut())
    if os.environ.get("ARGOSY_LOG_FORMAT") == "json":
        from celery.apps import worker as celery_worker

        celery_worker.safe_say = lambda *_: None  # it writes lines of its own to stdout when the worker stops
    warnings.filterwarnings("ignore", "Exception raised outside body", RuntimeWarning)  # refused, by name
    node.lanes.follow(partial(_take_from, worker, node.lanes))
    draining = Loop("drain", drain)
    draining.start()
    node.watchdog.watch_loop(draining)
    node.watchdog.watch(slots, lambda: _has_lost_a_slot(worker))
    consumer.note("starting", END_LIMIT_S)
    watch_here(consumer)  # the consumer notes its turns
    node.watchdog.watch(consumer)
    try:
        worker.start()
    finally:
        node.watchdog.leave(consumer)
        node.watchdog.leave(slots)
        stopping.set()
        draining.join()


def _is_no_return(record: logging.LogRecord) -> bool:
    """Leave out that an envelope goes back to its queue, which is no fault."""
    from celery.exceptions import Reject

    return not (record.exc_info and isinstance(record.exc_info[1], Reject))


def _has_lost_a_slot(worker: Any) -> bool:
    """Return whether a thread of Celery's pool has ended; the pool would not replace it."""
    executor = getattr(worker.pool, "executor", None)
    if executor is None or executor._shutdown:  # noqa: SLF001 - it has no other way to ask
        return False
    return any(not thread.is_alive() for thread in list(executor._threads))  # noqa: SLF001


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
