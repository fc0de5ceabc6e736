"""The faults: who is killed, and how. Every choice comes from one seeded random."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import psutil

from benchmarks.disasters.databases import PostgreSql
from benchmarks.disasters.load import Producers
from workers.fleet.local import LocalFleet

T = TypeVar("T")

#: Seconds that something to strike at may take to appear: a worker that is being started again, say.
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault that was dealt. `at` is Unix seconds."""

    kind: str
    at: float


class Faults:
    """Strikes at a fleet, its producers and its database, one kind of fault at a time."""

    def __init__(
        self, fleet: LocalFleet, producers: Producers, database: PostgreSql | None, random: Random, *, lease_s: float
    ) -> None:
        self._fleet = fleet
        self._producers = producers
        self._database = database
        self._random = random
        self._lease_s = lease_s
        self._kinds: dict[str, Callable[[], None]] = {
            "device": self._device,
            "worker": self._worker,
            "producer": self._producer,
            "valkey": self._valkey,
            "valkey_emptied": self._valkey_emptied,
            "worker_stopped": self._worker_stopped,
            "all_at_once": self._all_at_once,
        }
        if database is not None:
            self._kinds |= {"postgresql": self._postgresql, "postgresql_session": self._postgresql_session}

    def sequence(self, count: int) -> list[str]:
        """Return `count` kinds in random order, each as often as any other."""
        kinds = list(self._kinds)
        chosen = [kinds[n % len(kinds)] for n in range(count)]
        self._random.shuffle(chosen)
        return chosen

    def strike(self, kind: str) -> Blow:
        """Do it and return what was done when."""
        if kind == "producer" and self._producers.finished:
            kind = "worker"  # at the very end there may be none left
        self._kinds[kind]()
        return Blow(kind, self._struck_at)

    # --- kinds ---

    def _device(self) -> None:
        """The process that owns a device, under whatever batch it computes."""
        process = self._waited_for(self._devices)
        self._now()
        process.send_signal(signal.SIGKILL)

    def _worker(self) -> None:
        """A worker: its leases run out, its messages are gone from Redis, its device process must end by itself."""
        self._kill(self._waited_for(self._workers))

    def _producer(self) -> None:
        """A producer in the middle of its submission."""
        self._kill(self._waited_for(lambda: self._producers.live))

    def _valkey(self) -> None:
        """The broker, its data on disk up to the last second."""
        self._kill(self._waited_for(self._brokers))

    def _valkey_emptied(self) -> None:
        """The broker with all its data: it comes back empty."""
        broker = self._waited_for(self._brokers)
        shutil.rmtree(self._fleet.home / "valkey" / "appendonlydir", ignore_errors=True)
        self._kill(broker)

    def _worker_stopped(self) -> None:
        """A worker that stands still until others have its envelopes, and then goes on as if nothing had been."""
        worker = self._waited_for(self._workers)
        self._now()
        worker.send_signal(signal.SIGSTOP)
        try:
            time.sleep(1.5 * self._lease_s)
        finally:
            worker.send_signal(signal.SIGCONT)

    def _all_at_once(self) -> None:
        """Everything but the disk: all workers, the broker, the producers, the database."""
        victims = [*self._workers(), *self._brokers(), *self._producers.live]
        self._now()
        if self._database:
            self._database.crash()
        for victim in victims:
            victim.kill()
        if self._database:
            self._database.start()

    def _postgresql(self) -> None:
        """The database, for up to two seconds."""
        assert self._database is not None
        self._now()
        self._database.crash()
        time.sleep(self._random.uniform(0, 2))
        self._database.start()

    def _postgresql_session(self) -> None:
        """One of the database's own processes."""
        assert self._database is not None
        self._now()
        self._database.kill_session(self._random)

    # --- victims ---

    def _workers(self) -> Sequence[subprocess.Popen[bytes]]:
        return [s.process for s in self._fleet.workers if s.process and s.process.poll() is None]

    def _brokers(self) -> Sequence[subprocess.Popen[bytes]]:
        broker = self._fleet.broker_process
        return [broker] if broker and broker.poll() is None else []

    def _devices(self) -> Sequence[psutil.Process]:
        found: list[psutil.Process] = []
        for worker in self._workers():
            try:
                found += psutil.Process(worker.pid).children()
            except psutil.NoSuchProcess:
                continue
        return found

    def _waited_for(self, victims: Callable[[], Sequence[T]]) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := victims()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing to strike at within {PATIENCE_S:g} s")
            time.sleep(0.02)
        return self._random.choice(found)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        self._now()
        process.kill()

    def _now(self) -> None:
        self._struck_at = time.time()
