"""The faults: a table of kinds, each a function that does the harm and, for a lasting one, ends it.

Every choice comes from one seeded random. A kind is a generator like that of `contextlib.contextmanager`: it picks its
victim, calls `Stage.struck`, harms it, and yields a note; after the yield it ends the harm.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import psutil

from benchmarks.disasters import agent
from benchmarks.disasters.databases import PostgreSql
from benchmarks.disasters.fleet import LinkedFleet
from benchmarks.disasters.links import Link
from benchmarks.disasters.load import Producers
from workers.device.fork_server import process_name

T = TypeVar("T")

#: Seconds that a victim may take to appear: a worker that is being started again, for example.
PATIENCE_S = 60.0

#: A wrong clock is off by whole hours, so that the times that it wrote are known again (`verdict.unshifted`).
SHIFT_S = 3600


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault that was dealt. It began at `at` and lasted until `until` (Unix seconds; 0: it did not last)."""

    kind: str
    at: float
    until: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        lasted = f"for {self.until - self.at:.1f} s" if self.until else ""
        return " ".join(part for part in (self.kind, self.note, lasted) if part)

    @property
    def over(self) -> float:
        """The time from which recovery counts."""
        return self.until or self.at


@dataclass(slots=True)
class Stage:
    """The victims: a fleet with its gateway, its producers, its links, and its database if that is PostgreSQL."""

    fleet: LinkedFleet
    producers: Producers
    database: PostgreSql | None
    links: Mapping[str, Link]
    random: Random
    struck_at: float = 0.0
    lasts_s: float = 0.0
    struck_threads: Counter[str] = field(default_factory=Counter)
    tried_threads: Counter[str] = field(default_factory=Counter)

    def struck(self) -> None:
        self.struck_at = time.time()

    @property
    def workers(self) -> list[int]:
        return _living(service.process for service in self.fleet.workers)

    @property
    def gateways(self) -> list[int]:
        return _living([self.fleet.gateway.process])

    @property
    def brokers(self) -> list[int]:
        return _living([self.fleet.broker_process])

    @property
    def devices(self) -> list[int]:
        """The processes that own a device."""
        names = {process_name(worker) for worker in self.workers}
        running = psutil.process_iter(["name", "status"])
        return [one.pid for one in running if one.info["name"] in names and one.info["status"] != psutil.STATUS_ZOMBIE]

    @property
    def clients(self) -> list[int]:
        """The producers. Once all are done, the gateway, which is a client too."""
        producers = [process.pid for process in self.producers.live]
        return self.gateways if self.producers.finished else producers

    def waited_for(self, victims: Callable[[], Sequence[T]]) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := victims()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing to strike at within {PATIENCE_S:g} s")
            time.sleep(0.02)
        return self.random.choice(found)

    def kill(self, victims: Callable[[], Sequence[int]], number: int = signal.SIGKILL) -> int:
        """Send a signal to one of the victims, and return its process id. It may have died by itself: then another."""
        while True:
            victim = self.waited_for(victims)
            self.struck()
            with suppress(ProcessLookupError):
                os.kill(victim, number)
                return victim


Fault = Callable[[Stage], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. A lasting one is ended after a random time within `lasts_s`.

    `silent` kinds have a recovery figure of their own; `postgresql` kinds need that database.
    """

    group: str
    fault: Fault
    lasts_s: tuple[float, float] = (0.0, 0.0)
    silent: bool = False
    postgresql: bool = False


def chosen(wanted: Sequence[str], *, with_postgresql: bool) -> list[str]:
    """Return the kinds of these names or groups (all, if there are none), as far as the store has them.

    Raises ValueError for an unknown name.
    """
    groups = {kind.group for kind in KINDS.values()}
    if unknown := set(wanted) - KINDS.keys() - groups:
        raise ValueError(f"no such kinds: {', '.join(sorted(unknown))}")
    return [
        name
        for name, kind in KINDS.items()
        if (not wanted or name in wanted or kind.group in wanted) and (with_postgresql or not kind.postgresql)
    ]


def sequence(names: Sequence[str], count: int, random: Random) -> list[str]:
    """Return `count` kinds in random order, each as often as any other."""
    order = random.sample(names, len(names))
    found = [order[n % len(order)] for n in range(count)]
    random.shuffle(found)
    return found


def strike(stage: Stage, name: str) -> Blow:
    """Deal a blow, let it last, end it, and return it."""
    kind = KINDS[name]
    stage.lasts_s = stage.random.uniform(*kind.lasts_s)
    with contextmanager(kind.fault)(stage) as note:
        time.sleep(stage.lasts_s)
    return Blow(name, stage.struck_at, time.time() if stage.lasts_s else 0.0, note)


# --- kills ---


def device(stage: Stage) -> Iterator[str]:
    """The process that owns a device, under any batch."""
    stage.kill(lambda: stage.devices)
    yield ""


def worker(stage: Stage) -> Iterator[str]:
    """A worker: its leases run out, its messages are gone from Redis, its device process must end by itself."""
    stage.kill(lambda: stage.workers)
    yield ""


def gateway(stage: Stage) -> Iterator[str]:
    """The gateway, with the requests that it serves."""
    stage.kill(lambda: stage.gateways)
    yield ""


def producer(stage: Stage) -> Iterator[str]:
    """A producer in the middle of its submission."""
    stage.kill(lambda: stage.clients)
    yield ""


def valkey(stage: Stage) -> Iterator[str]:
    """The broker, its data on disk up to the last second."""
    stage.kill(lambda: stage.brokers)
    yield ""


def valkey_emptied(stage: Stage) -> Iterator[str]:
    """The broker with all its data: it comes back empty."""
    stage.waited_for(lambda: stage.brokers)
    shutil.rmtree(stage.fleet.home / "valkey" / "appendonlydir", ignore_errors=True)
    stage.kill(lambda: stage.brokers)
    yield ""


def all_at_once(stage: Stage) -> Iterator[str]:
    """Everything but the disk: all workers, the gateway, the broker, the producers, the database."""
    victims = [*stage.workers, *stage.gateways, *stage.brokers, *stage.clients]
    stage.struck()
    if stage.database:
        stage.database.crash()
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    if stage.database:
        stage.database.start()
    yield ""


def postgresql(stage: Stage) -> Iterator[str]:
    """The database, for up to two seconds."""
    assert stage.database is not None
    stage.struck()
    stage.database.crash()
    time.sleep(stage.random.uniform(0, 2))
    stage.database.start()
    yield ""


def postgresql_session(stage: Stage) -> Iterator[str]:
    """A process of the database."""
    assert stage.database is not None
    stage.struck()
    stage.database.kill_session(stage.random)
    yield ""


# --- processes that stand still ---


def _stopped(victims: Callable[[Stage], Sequence[int]]) -> Fault:
    """A process stands still, longer than a lease, and goes on as if nothing had been."""

    def fault(stage: Stage) -> Iterator[str]:
        victim = stage.kill(lambda: victims(stage), signal.SIGSTOP)
        try:
            yield ""
        finally:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)

    return fault


def postgresql_stopped(stage: Stage) -> Iterator[str]:
    """All processes of the database stand still."""
    assert stage.database is not None
    stage.struck()
    stage.database.stand_still()
    try:
        yield ""
    finally:
        stage.database.go_on()


# --- threads and clocks, by the agent ---


def _workers_and_devices(stage: Stage) -> list[int]:
    return [*stage.workers, *stage.devices]


def _clients(stage: Stage) -> list[int]:
    """The producers, and this process, whose client asks questions."""
    return [os.getpid(), *stage.clients]


def threads_of(stage: Stage, victims: Sequence[int], how: str) -> list[tuple[int, list[int], str]]:
    """Return (process, threads, label) of the threads of these processes that are alike. Labels that were tried least
    come first.
    """
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    for pid in victims:
        with suppress(OSError):  # it has ended, or has not started its agent yet
            for thread, name in agent.ask(pid, "threads"):
                # in this process only the client's threads are victims
                if pid != os.getpid() or name.startswith("argosy"):
                    found[pid, f"{re.sub(r'[0-9]+', 'N', name)} {how}"].append(thread)
    groups = [(pid, threads, label) for (pid, label), threads in found.items()]
    stage.random.shuffle(groups)
    return sorted(groups, key=lambda group: stage.tried_threads[group[2]])


def _in_a_thread(
    stage: Stage, victims: Callable[[Stage], Sequence[int]], how: str, act: Callable[[int, list[int]], bool]
) -> str:
    """Do something to a thread, each name in turn, and return its label."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for pid, threads, label in threads_of(stage, victims(stage), how):
            stage.tried_threads[label] += 1
            stage.struck()
            with suppress(OSError):
                if act(pid, threads):
                    stage.struck_threads[label] += 1
                    return label
        time.sleep(0.1)
    raise TimeoutError(f"no thread to strike at within {PATIENCE_S:g} s")


def _raises(victims: Callable[[Stage], Sequence[int]], role: str) -> Fault:
    def fault(stage: Stage) -> Iterator[str]:
        error = stage.random.choice(list(agent.ERRORS))

        def act(pid: int, threads: list[int]) -> bool:
            return bool(agent.ask(pid, "raise_in", thread=stage.random.choice(threads), error=error))

        yield _in_a_thread(stage, victims, f"of {role} raises", act)

    return fault


def _held(victims: Callable[[Stage], Sequence[int]], role: str) -> Fault:
    """The hold ends by itself: the agent is told how long it lasts."""

    def fault(stage: Stage) -> Iterator[str]:
        def act(pid: int, threads: list[int]) -> bool:
            return bool(agent.ask(pid, "hold", threads=threads, for_s=stage.lasts_s))

        yield _in_a_thread(stage, victims, f"of {role} held", act)

    return fault


def _clock(victims: Callable[[Stage], Sequence[int]]) -> Fault:
    def fault(stage: Stage) -> Iterator[str]:
        shift_s = stage.random.choice([-SHIFT_S, SHIFT_S])
        victim = stage.waited_for(lambda: _shifted(victims(stage), shift_s, stage.random))
        stage.struck()
        try:
            yield f"{shift_s:+d} s"
        finally:
            with suppress(OSError):  # the process has ended
                agent.ask(victim, "clock", shift_s=0)

    return fault


def _shifted(pids: Sequence[int], shift_s: int, random: Random) -> list[int]:
    """Shift the clock of the first of these processes whose agent answers, and return it alone."""
    for pid in random.sample(pids, len(pids)):
        with suppress(OSError):
            agent.ask(pid, "clock", shift_s=shift_s)
            return [pid]
    return []


# --- links that drop packets ---


def _silent(*, existing: bool, new: bool) -> Fault:
    """The existing connections stay silent for good if they alone are struck; else the network comes back."""

    def fault(stage: Stage) -> Iterator[str]:
        name = stage.random.choice(sorted(stage.links))
        stage.struck()
        stage.links[name].silence(existing=existing, new=new)
        try:
            yield name
        finally:
            stage.links[name].speak(existing=new)

    return fault


# --- a Redis that refuses ---


def _refusing(begin: Callable[[Stage, Any], None], end: Callable[[Stage, Any], None]) -> Fault:
    from redis import Redis
    from redis.exceptions import RedisError

    def fault(stage: Stage) -> Iterator[str]:
        with Redis.from_url(stage.fleet.valkey_url, socket_timeout=5) as redis:
            stage.waited_for(lambda: _answering(redis))
            stage.struck()
            begin(stage, redis)
            try:
                yield ""
            finally:
                with suppress(RedisError):  # it has died meanwhile, and forgotten what it was told
                    end(stage, redis)

    return fault


def _answering(redis: Any) -> list[int]:
    """Return a Redis that an earlier blow did not leave dead or loading, as a list of one."""
    from redis.exceptions import RedisError

    with suppress(RedisError):
        redis.ping()
        return [1]
    return []


def _full(_: Stage, redis: Any) -> None:
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] * 3 // 4)


def _roomy(_: Stage, redis: Any) -> None:
    redis.config_set("maxmemory", 0)


def _read_only(_: Stage, redis: Any) -> None:
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")


def _master(_: Stage, redis: Any) -> None:
    redis.execute_command("REPLICAOF", "NO", "ONE")


def _misconf(stage: Stage, redis: Any) -> None:
    """A snapshot that cannot be written, since a folder has its name, has all writes refused."""
    (stage.fleet.home / "valkey" / "dump.rdb" / "in the way").mkdir(parents=True)
    redis.config_set("save", "3600 1")
    redis.bgsave(schedule=True)
    stage.waited_for(lambda: [1] if redis.info("persistence")["rdb_last_bgsave_status"] != "ok" else [])


def _conf(stage: Stage, redis: Any) -> None:
    shutil.rmtree(stage.fleet.home / "valkey" / "dump.rdb", ignore_errors=True)
    redis.config_set("save", "")


def _no_permission(_: Stage, redis: Any) -> None:
    redis.execute_command("ACL", "SETUSER", "default", "-@write")


def _permission(_: Stage, redis: Any) -> None:
    redis.execute_command("ACL", "SETUSER", "default", "+@all")


# --- a process without descriptors or memory ---


def descriptors(stage: Stage) -> Iterator[str]:
    """A worker or the gateway can open nothing; half of the time a device process dies meanwhile."""

    def has_no_more(process: psutil.Process) -> tuple[int, int]:
        return psutil.RLIMIT_NOFILE, process.num_fds()

    with contextmanager(_limited)(stage, has_no_more) as note:
        if stage.random.random() < 0.5:
            for victim in stage.devices[:1]:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            yield f"{note}, a device died"
        else:
            yield note


def memory(stage: Stage) -> Iterator[str]:
    """A worker or the gateway may allocate another MiB and no more."""

    def has_no_more(process: psutil.Process) -> tuple[int, int]:
        return psutil.RLIMIT_AS, process.memory_info().vms + 2**20

    yield from _limited(stage, has_no_more)


def _limited(stage: Stage, limit: Callable[[psutil.Process], tuple[int, int]]) -> Iterator[str]:
    while True:
        pid = stage.waited_for(lambda: [*stage.workers, *stage.gateways])
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            resource, soft = limit(process)
            before = process.rlimit(resource)
            stage.struck()
            process.rlimit(resource, (soft, before[1]))
            break
    try:
        yield "gateway" if pid in stage.gateways else "worker"
    finally:
        with suppress(psutil.NoSuchProcess):
            process.rlimit(resource, before)


def _living(processes: Any) -> list[int]:
    return [process.pid for process in processes if process is not None and process.poll() is None]


_HELD_S = (2.0, 8.0)
_LONGER_THAN_A_LEASE_S = (4.5, 8.0)
_SOME_SECONDS_S = (3.0, 8.0)
_SPLIT_S = (5.0, 20.0)

KINDS: Mapping[str, Kind] = {
    "device": Kind("kills", device),
    "worker": Kind("kills", worker),
    "gateway": Kind("kills", gateway),
    "producer": Kind("kills", producer),
    "valkey": Kind("kills", valkey),
    "valkey_emptied": Kind("kills", valkey_emptied),
    "all_at_once": Kind("kills", all_at_once),
    "postgresql": Kind("kills", postgresql, postgresql=True),
    "postgresql_session": Kind("kills", postgresql_session, postgresql=True),
    "worker_stopped": Kind("stopped", _stopped(lambda stage: stage.workers), _LONGER_THAN_A_LEASE_S),
    "valkey_stopped": Kind("stopped", _stopped(lambda stage: stage.brokers), _LONGER_THAN_A_LEASE_S),
    "postgresql_stopped": Kind("stopped", postgresql_stopped, _LONGER_THAN_A_LEASE_S, postgresql=True),
    "worker_thread_raises": Kind("threads", _raises(_workers_and_devices, "worker")),
    "worker_thread_held": Kind("threads", _held(_workers_and_devices, "worker"), _HELD_S),
    "gateway_thread_raises": Kind("threads", _raises(lambda stage: stage.gateways, "gateway")),
    "gateway_thread_held": Kind("threads", _held(lambda stage: stage.gateways, "gateway"), _HELD_S),
    "client_thread_raises": Kind("threads", _raises(_clients, "client")),
    "client_thread_held": Kind("threads", _held(_clients, "client"), _HELD_S),
    "worker_clock": Kind("clocks", _clock(lambda stage: stage.workers), _LONGER_THAN_A_LEASE_S),
    "gateway_clock": Kind("clocks", _clock(lambda stage: stage.gateways), _LONGER_THAN_A_LEASE_S),
    "client_clock": Kind("clocks", _clock(lambda stage: stage.clients), _LONGER_THAN_A_LEASE_S),
    "silent_existing": Kind("silent", _silent(existing=True, new=False), silent=True),
    "silent_new": Kind("silent", _silent(existing=False, new=True), _SPLIT_S, silent=True),
    "silent_all": Kind("silent", _silent(existing=True, new=True), _SPLIT_S, silent=True),
    "redis_full": Kind("refusing", _refusing(_full, _roomy), _SOME_SECONDS_S),
    "redis_read_only": Kind("refusing", _refusing(_read_only, _master), _SOME_SECONDS_S),
    "redis_misconf": Kind("refusing", _refusing(_misconf, _conf), _SOME_SECONDS_S),
    "redis_no_permission": Kind("refusing", _refusing(_no_permission, _permission), _SOME_SECONDS_S),
    "descriptors": Kind("limits", descriptors, _SOME_SECONDS_S),
    "memory": Kind("limits", memory, _SOME_SECONDS_S),
}
