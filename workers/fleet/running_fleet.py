"""The checks of `argosy doctor` for a running fleet: workers, queues, clocks, and work that makes no progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from producers.wire.connection import Connection
from producers.wire.errors import BrokerUnavailable, Overloaded
from producers.wire.live_nodes import node_key
from producers.wire.messages import Priority
from producers.wire.outside.allowed_places import unread
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import PRIORITY_ENDS, PRIORITY_SEPARATOR, queue_of, waiting_messages
from producers.wire.training.training_job import TRAINING
from results_store.records import Backlog, Batch
from results_store.sql.waiting.schedules import Schedule
from results_store.store import Store
from workers.fleet.findings import Finding, checked
from workers.node import presence
from workers.node.presence import NodeState

K = TypeVar("K")
V = TypeVar("V")

#: Work that waits for longer, beside a fleet that does something else or nothing, makes no progress.
PATIENCE_S = 60.0

#: A run of a schedule that nobody has begun for so long.
SCHEDULED_LATE_S = 60.0

#: The remedy for a run that living nodes may begin by their settings.
_LEFT = (
    "see the workers' logs: a time zone that is not there or a newer form is named; or a link leads out of the folder"
)

#: Clocks that differ by less are not worth a remedy.
CLOCKS_APART_S = 5.0

#: A problem that may pass by itself is looked at again after this time. A node sees a new tenant's lane within 2 s.
SECOND_LOOK_S = 5.0


def examine(where: Connection) -> list[Finding]:
    """Run all checks; an error in one never hides the others."""
    with closing(Publisher(where.broker_url)) as publisher, Store(where.store_url) as store:
        checks = {
            "worker": partial(_workers, publisher),
            "queues": partial(_unread, publisher),
            "work": partial(_stuck, publisher, store),
            "jobs": partial(_unowed, store),
            "envelopes": partial(_running_alone, store),
            "pauses": partial(paused, store),
            "retries": partial(_postponed, store),
            "schedules": partial(_scheduled, publisher, store),
            "dead letters": partial(_dead, store),
            "clock": partial(_clocks, publisher, store),
        }
        return [finding for about, check in checks.items() for finding in checked(about, check)]


def _workers(publisher: Publisher) -> Iterator[Finding]:
    """Check the workers' models; a worker that could not load a declared model is a fault."""
    nodes = presence.nodes(publisher)
    if not nodes:
        remedy = "start a fleet with `argosy up`, or `argosy worker`; a worker that loads its models is not online yet"
        yield Finding("worker", False, "none online", remedy)
    for node in nodes:
        failed = [name for name, state in node.models.items() if state.state == "failed"]
        served = "; ".join(f"{name} {node.served(name)}" for name in node.models)
        yield Finding(f"worker {node.name}", not failed, served, f"argosy models reload {failed[0]}" if failed else "")
    for end in presence.ends(publisher, time.time() - presence.ENDED_FOR_S):
        found = f"ended itself {max(0.0, time.time() - end.at):.0f} s ago: {end.reason}"
        remedy = "its log shows where each thread was; its supervisor has started it again if it is listed above"
        yield Finding(f"worker {end.name}", False, found, remedy)


def _unread(publisher: Publisher) -> Iterator[Finding]:
    """Report messages in lists that no live worker reads."""
    for key, (number, remedy) in _twice(lambda: dict(_unread_lists(publisher))).items():
        queue = queue_of(key)
        priority = key.removeprefix(queue).lstrip(f"{PRIORITY_SEPARATOR}:")
        found = f"{number} messages wait{f' (priority {priority})' if priority else ''}, and no worker reads them"
        yield Finding(f"queue {queue}", False, found, remedy)


def _unread_lists(publisher: Publisher) -> Iterator[tuple[str, tuple[int, str]]]:
    """Yield these lists, each with the number of messages and the remedy."""
    nodes = presence.nodes(publisher)
    with as_unavailable(publisher.redis):
        lists = waiting_messages(publisher.redis)
    for key, number in lists.items():
        queue = queue_of(key)
        model = queue.removeprefix("argosy.").partition("/")[0]
        if not any(model in node.models for node in nodes):
            yield key, (number, f"start a worker that serves {model!r}, or cancel their jobs")
        elif not any(node.takes(queue) for node in nodes):
            yield key, (number, f"no tenant has this lane: let the application send to `argosy.{model}`")
        elif key.removeprefix(queue) not in ("", *(end for _, end in PRIORITY_ENDS)):
            yield key, (number, "workers read the priorities 0 to 9: let the application send one of these")


def _stuck(publisher: Publisher, store: Store) -> Iterator[Finding]:
    """Report work that waits beside a worker that does nothing, or only less urgent work."""
    for (model, priority), finding in _twice(lambda: dict(_waiting_in_vain(publisher, store))).items():
        yield Finding(f"work of {model}, {_named(priority)}", False, *finding)


def _waiting_in_vain(publisher: Publisher, store: Store) -> Iterator[tuple[tuple[str, int], tuple[str, str]]]:
    """Yield the models and priorities of this work, each with the problem and the remedy."""
    now, backlog, nodes = store.now(), store.backlog(), presence.nodes(publisher)
    batches = store.flight.recent(limit=1000, since=now - PATIENCE_S)
    for work in backlog:
        if work.oldest_at is None:
            continue
        waits = f"{work.waiting} envelopes wait, the oldest for {_age(now - work.oldest_at)}"
        if not any(work.model in node.models for node in nodes):
            wanted = "`worker.trainings`" if work.model == TRAINING else f"the model {work.model!r}"
            remedy = f"start a worker whose fleet.toml has {wanted}, or cancel their jobs"
            yield (work.model, work.priority), (f"{waits}, and no worker serves this model", remedy)
        elif (
            work.model != TRAINING
            and now - work.oldest_at > PATIENCE_S
            and (problem := _passed_over(work, backlog, batches))
        ):
            remedy = "look at the worker's log; if it says nothing, restart the worker: its work goes on"
            yield (work.model, work.priority), (f"{waits}, and {problem}", remedy)


def _passed_over(work: Backlog, backlog: Sequence[Backlog], batches: Sequence[Batch]) -> str:
    """Return why this work should have progressed; empty if it may have to wait."""
    own = [batch for batch in batches if batch.model == work.model]
    if not own and not any(other.held for other in backlog if other.model == work.model):
        return f"its workers have computed nothing for {PATIENCE_S:.0f} s"
    ran = {int(priority) for batch in own for priority in batch.priorities}
    if not work.held and work.priority not in ran and any(priority > work.priority for priority in ran):
        return "its workers take less urgent work only"
    return ""


def _twice(look: Callable[[], dict[K, V]]) -> dict[K, V]:
    """Return what two looks both see. The second look is only taken if the first sees something."""
    first = look()
    if not first:
        return {}
    time.sleep(SECOND_LOOK_S)
    return {key: value for key, value in look().items() if key in first}


def _unowed(store: Store) -> Iterator[Finding]:
    if jobs := store.unowed(older_than_s=PATIENCE_S):
        found = f"{len(jobs)} lack results that no envelope owes, for instance {jobs[0]}: they would never finish"
        yield Finding("jobs", False, found, "submit the missing items again, `argosy purge` the job, and report this")


def _running_alone(store: Store) -> Iterator[Finding]:
    """Report envelopes under which workers died again and again."""
    number, job = store.running_alone()
    if number:
        found = f"{number} run alone, for instance one of job {job}: workers died under them without an error"
        remedy = "look for the cause in the logs of the workers and of the kernel; an item at fault fails as WorkerLost"
        yield Finding("envelopes", False, found, remedy)


def paused(store: Store) -> Iterator[Finding]:
    """Name what an operator has paused: no problem, but the reason for which work waits."""
    for one in store.pauses.every():
        age = _age(store.now() - one.paused_at)
        remedy = f"`argosy resume {one.kind} {one.name or repr('')}` ends it"
        yield Finding("pause", True, f"{one}, for {age}; {one.waiting} envelopes wait: {remedy}")


def _postponed(store: Store) -> Iterator[Finding]:
    """Name the work that is tried again: no problem of the fleet, but the reason for which jobs do not end."""
    if found := store.retried_work():
        yield Finding("retries", True, f"{found}; the next in {_age(found.due_at - store.now())}")


def _scheduled(publisher: Publisher, store: Store) -> Iterator[Finding]:
    """Report schedules whose time has passed without a run, and those whose last run failed."""
    nodes, late = presence.nodes(publisher), store.schedules.late(SCHEDULED_LATE_S)
    for one in late:
        found = f"its run is {_age(store.now() - (one.next_at or 0.0))} late, and nobody has begun it"
        yield Finding(f"schedule {one.name}", False, found, _unscheduled(one, nodes) or _LEFT)
    waiting, last_runs = {one.name for one in late}, store.schedules.last_runs()
    for one in store.schedules.every():
        is_next = nodes and one.next_at is not None and one.paused_at is None and one.name not in waiting
        if is_next and (remedy := _unscheduled(one, nodes)):
            yield Finding(f"schedule {one.name}", False, "no living node may run it", remedy)
        run = last_runs.get(one.name)
        if run is not None and run.state in ("failed", "skipped"):
            remedy = f"submit the rows by `argosy submit`; `argosy schedule runs {one.name}` lists the runs"
            yield Finding(f"schedule {one.name}", False, f"its last run {run.state}: {run.error}", remedy)


def _unscheduled(one: Schedule, nodes: Sequence[NodeState]) -> str:
    """Return the remedy if no living node may run a schedule, or nothing."""
    return unread(one.submission, one.host, ((node.host, node.schedules) for node in nodes))


def _dead(store: Store) -> Iterator[Finding]:
    number, last_at = store.given_up()
    if last_at is not None:
        found = f"{number} envelopes were given up, the last {_age(store.now() - last_at)} ago"
        remedy = "`argosy dead` shows their errors; `argosy replay` queues them again"
        yield Finding("dead letters", False, found, remedy)


def _clocks(publisher: Publisher, store: Store) -> Iterator[Finding]:
    """Compare the clocks of this machine, the broker and the workers with the store's clock, which judges."""
    ahead = time.time() - store.now()
    clocks = {"this machine": ahead, "the broker": _broker_ahead(publisher) + ahead}
    for node in presence.nodes(publisher):
        if node.at and _takes_writes(publisher):  # a Redis that refuses keeps an old announcement alive
            clocks[f"worker {node.name}"] = _node_ahead(publisher, node) + ahead
    for name, seconds in clocks.items():
        if abs(seconds) > CLOCKS_APART_S:
            found = f"the clock of {name} is {_age(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'} the store's"
            remedy = "set it by a time service (NTP): times in results, batches and `durable=False` deadlines are wrong"
            yield Finding("clock", False, found, remedy)


def _takes_writes(publisher: Publisher) -> bool:
    try:
        publisher.check_writes()
    except (BrokerUnavailable, Overloaded):
        return False
    return True


def _broker_ahead(publisher: Publisher) -> float:
    """Return by how many seconds the broker's clock is ahead of this machine's."""
    found: Any
    with as_unavailable(publisher.redis):
        found = publisher.redis.time()
    return float(found[0] + found[1] / 1e6 - time.time())


def _node_ahead(publisher: Publisher, node: NodeState) -> float:
    """Return by how many seconds a node's clock is ahead of this machine's: its announcement expires in known time."""
    left_ms: Any
    with as_unavailable(publisher.redis):
        left_ms = publisher.redis.pttl(node_key(node.name))
    age_s = presence.GONE_AFTER_S - max(0, left_ms) / 1000
    return float(node.at + age_s - time.time())


def _named(priority: int) -> str:
    return Priority(priority).name.lower() if priority in list(Priority) else f"priority {priority}"


def _age(seconds: float) -> str:
    return str(timedelta(seconds=round(max(0.0, seconds))))
