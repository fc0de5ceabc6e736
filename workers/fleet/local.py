"""A whole fleet on this machine: embedded Valkey, SQLite store, a worker per device, Flower; started, watched, stopped.

Order matters. Up: lock, leftovers of a killed fleet, broker, store, workers, Flower, and last ``fleet.json``, by which
clients find the fleet. Down in reverse, workers before the broker, so that it still gets their acknowledgements.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Self
from urllib.parse import quote, urlsplit

import msgspec
import psutil

from producers.wire import connection
from producers.wire.atomic_files import atomically
from producers.wire.errors import ConfigurationError
from results_store.store import Store
from workers.device import devices, fork_client
from workers.fleet.embedded_broker import EmbeddedValkey, is_free, kept_port
from workers.fleet.services import Restarts, Service, bound_log
from workers.node import declared_settings
from workers.settings import Settings

logger = logging.getLogger(__name__)


#: Flower's settings, unless the environment has others. It keeps its tasks in memory: 10,000 take about 60 MB. It has
#: no buttons that change something. The column `args` tells envelopes apart: all have the same name.
FLOWER = {
    "FLOWER_MAX_TASKS": "10000",
    "FLOWER_READ_ONLY": "true",
    "FLOWER_PERSISTENT": "true",
    "FLOWER_STATE_SAVE_INTERVAL": "60000",
    "FLOWER_TASKS_COLUMNS": "uuid,args,state,runtime,result,received,worker",
}


#: The most bytes of the path of a Unix socket. In a folder with a longer one, each worker has a fork server of its own.
LONGEST_SOCKET = 107

#: A site is a small machine: one worker shares a fork server with nobody, and threads that have an arena of memory of
#: their own keep what they free (docs/decisions/0062-small-sites.md).
SMALL = {fork_client.VARIABLE: fork_client.NONE, "MALLOC_ARENA_MAX": "1"}

#: The starts of a worker, one after the other, before the start of the fleet fails.
WORKER_STARTS = 3


class AlreadyRunning(ConfigurationError):
    """Another fleet uses this home folder."""


class LocalFleet:
    """A fleet in `home`. Use it as a context manager, or call `start`, `watch` and `stop`.

    `config` is the ``fleet.toml`` that `settings` were loaded from (default: ``$ARGOSY_FLEET``); workers and clients
    read it too. The broker and Flower have the ports given here, or else the ports of the start before in this home.
    A site has a `forwarder`, which serves the tasks of ``[edge]``.
    """

    def __init__(
        self,
        settings: Settings,
        home: Path,
        *,
        config: Path | None = None,
        flower: bool = True,
        forwarder: bool = False,
        workers_per_device: int = 1,
        broker_port: int | None = None,
        flower_port: int | None = None,
    ) -> None:
        self.settings = settings
        chosen = config or os.environ.get("ARGOSY_FLEET")
        self._config = str(Path(chosen).resolve()) if chosen else ""
        self.home = home
        self.services: list[Service] = []
        self.flower_url = ""
        self._earlier_flower_url = ""
        self._with_flower = flower
        self._with_forwarder = forwarder
        self._workers_per_device = workers_per_device
        self._flower_port = flower_port
        self._valkey = EmbeddedValkey(home / "valkey", port=broker_port)
        # nothing works without a broker, and it starts quickly
        self._broker_restarts = Restarts(longest_wait_s=2.0)
        self._lock: IO[str] | None = None
        self._noted = False  # whether processes.json is up to date
        self._failures: dict[str, str] = {}
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal handler may put into it at any time

    @property
    def broker_url(self) -> str:
        return self._valkey.url

    @property
    def store_url(self) -> str:
        """The SQLite database in the home folder, unless the environment or the settings name another store.

        Raises ConfigurationError.
        """
        if os.environ.get("ARGOSY_STORE_URL", "").strip():
            return connection.Connection().store_url
        return self.settings.store.url or f"sqlite:///{quote(str((self.home / 'store.db').resolve()))}"

    @property
    def _fork_socket(self) -> str:
        return str((self.home / "fork.sock").resolve())

    @property
    def pids(self) -> list[int]:
        """The processes of the fleet. A worker's device process is the worker's child."""
        return [process.pid for process in self._processes]

    @property
    def _processes(self) -> list[subprocess.Popen[bytes]]:
        broker = [self._valkey.process] if self._valkey.process else []
        return [*broker, *(service.process for service in self.services if service.process)]

    @property
    def broker_process(self) -> subprocess.Popen[bytes] | None:
        return self._valkey.process

    @property
    def workers(self) -> list[Service]:
        return [service for service in self.services if service.ready_file]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and return when the workers take envelopes.

        Raises AlreadyRunning, or ConfigurationError with the reason that a service did not start.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.home / "logs").mkdir(exist_ok=True)
        self._take_lock()
        _warn_of_open_files(self.home)
        try:
            self._end_leftovers()
            earlier = self._earlier()
            if earlier:
                self._valkey.keep_address(earlier.broker_url)
                self._earlier_flower_url = earlier.flower_url
            self._valkey.start()
            with contextlib.closing(Store(self.store_url)) as store:
                store.migrate()
            with Store(self.store_url) as store:
                declared_settings.forget_outdated(self.settings, store)
            self._start_services()
            self._await_workers()
            self._announce()
        except BaseException:
            self.stop()
            raise

    def clear(self) -> None:
        """Empty the home folder, for a fleet that starts from nothing. Raises AlreadyRunning."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            self._end_leftovers()
            shutil.rmtree(self.home)
        finally:
            self._release_lock()

    def whereabouts(self) -> list[str]:
        """The addresses of all services, a line each, without passwords."""
        nodes = ", ".join(service.name for service in self.workers)
        return [
            f"fleet    {self.home} (process {os.getpid()}; Ctrl-C stops it)",
            f"broker   {connection.masked(self.broker_url)}",
            f"store    {connection.masked(self.store_url)}",
            f"workers  {nodes}: {', '.join(self.settings.served)}",
            f"flower   {self.flower_url or 'off'}",
            f"logs     {self.home / 'logs'}",
        ]

    def watch(self) -> None:
        """Restart every service that ends, until `request_stop`. A service that ends again and again waits longer
        each time, and so does a service that cannot be started: no descriptor, memory or disk space is left.
        """
        while not self._is_to_stop(0.5):
            self._try("the embedded Valkey", self._restart_broker_if_ended)
            for service in self.services:
                self._try(service.name, partial(self._restart_if_ended, service))
            if not self._noted:
                self._try("the list of processes", self._note_processes)
            for log in (self._valkey.log, *(service.log for service in self.services)):
                self._try(f"the log {log}", partial(bound_log, log))

    def _is_to_stop(self, timeout_s: float) -> bool:
        with contextlib.suppress(queue.Empty):
            self._stops.get(timeout=timeout_s)
            return True
        return False

    def _try(self, what: str, work: Callable[[], object]) -> None:
        """Run a part of `watch`. A failure ends nothing else, and is logged if it is a new one."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the machine may have what it lacks next time
            failure = f"{type(error).__name__}: {error}"
            if self._failures.get(what) != failure:
                logger.warning("%s: %s; it is tried again", what, failure)
            self._failures[what] = failure
        else:
            self._failures.pop(what, None)

    def request_stop(self) -> None:
        """Make `watch` return. For signal handlers."""
        self._stops.put(None)

    def stop(self) -> None:
        """Stop everything, workers first, and leave nothing running. Unfinished work stays in the store.

        ``fleet.json`` stays too: it names an ended process, and the store, whose results can still be read.
        """
        for service in self.services:
            if service.process and service.process.poll() is None:
                service.process.terminate()  # all at once, then wait for each
        for service in self.services:
            service.stop()
        self.services.clear()
        self._valkey.stop()
        (self.home / "processes.json").unlink(missing_ok=True)
        self._release_lock()

    # --- starting ---

    def _take_lock(self) -> None:
        lock = (self.home / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            found = self._earlier()
            running = f" (process {found.pid}, Flower at {found.flower_url or 'off'})" if found else ""
            raise AlreadyRunning(
                f"a fleet already runs in {self.home}{running}; use it, stop it, or set ARGOSY_HOME to another folder"
            ) from None
        self._lock = lock

    def _earlier(self) -> connection.LocalFleet | None:
        """The fleet that announced itself here last."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode((self.home / "fleet.json").read_bytes(), type=connection.LocalFleet)
        return None

    def _release_lock(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def _start_services(self) -> None:
        environment = os.environ | {"ARGOSY_BROKER_URL": self.broker_url, "ARGOSY_STORE_URL": self.store_url}
        if self._config:
            environment["ARGOSY_FLEET"] = self._config
        for unwanted in ("ARGOSY_BROKER_PASSWORD_FILE", "ARGOSY_STORE_PASSWORD_FILE"):
            environment.pop(unwanted, None)  # the URLs above are complete
        if self._with_forwarder:
            environment |= SMALL
        elif fork_client.can_fork() and len(os.fsencode(self._fork_socket)) <= LONGEST_SOCKET:
            self.services.append(self._fork_server(environment))
        for device in devices.select(self.settings.worker.profile, self.settings.worker.devices):
            for number in range(self._workers_per_device):
                self.services.append(self._worker(device, number, environment))
        if self._with_forwarder:
            command = [sys.executable, "-m", "producers.edge.forwarder"]
            log = self.home / "logs" / "forwarder.log"
            self.services.append(Service("forwarder", command, environment, log, stop_timeout_s=15.0))
        if self._with_flower:
            self.services.append(self._flower(environment))
        for service in self.services:
            service.start()
        self._note_processes()

    def _fork_server(self, environment: dict[str, str]) -> Service:
        """The process from which the workers' device processes are forked. It outlives the workers."""
        path = environment[fork_client.VARIABLE] = self._fork_socket
        own = devices.pinned_environment(devices.cpu(), environment, threads=self.settings.worker.threads)
        command = [sys.executable, "-m", "workers.device.fork_server", path]
        log = self.home / "logs" / "fork-server.log"
        return Service("fork-server", command, own, log, stop_timeout_s=self.settings.worker.grace_s + 15.0)

    def _worker(self, device: devices.Device, number: int, environment: Mapping[str, str]) -> Service:
        name = f"worker-{device.name.replace(':', '')}" + (f"-{number}" if number else "")
        ready = self.home / f"{name}.ready"
        command = [
            sys.executable,
            "-m",
            "producers.commands.main",
            "worker",
            "--device",
            device.name,
            "--ready-file",
            str(ready),
        ]
        grace_s = self.settings.worker.grace_s
        return Service(name, command, environment, self.home / "logs" / f"{name}.log", ready, grace_s + 15.0)

    def _flower(self, environment: Mapping[str, str]) -> Service:
        if self._flower_port and not is_free(self._flower_port):
            raise ConfigurationError(f"--flower-port: port {self._flower_port} is taken; choose another one")
        port = self._flower_port or kept_port(urlsplit(self._earlier_flower_url).port, "Flower")
        self.flower_url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "celery", "flower", "--address=127.0.0.1", f"--port={port}"]
        # in the environment, since every user of this machine can read a command line
        own = {
            **FLOWER,
            "FLOWER_DB": str((self.home / "flower").resolve()),
            **connection.without_secrets(environment, keep=("FLOWER_",)),
            "CELERY_BROKER_URL": self.broker_url,
            "CELERY_CONFIG_MODULE": "workers.consumer.monitoring",
        }
        return Service("flower", command, own, self.home / "logs" / "flower.log")

    def _await_workers(self) -> None:
        deadline = time.monotonic() + self.settings.worker.load_timeout_s
        for service in self.workers:
            self._await_worker(service, deadline)

    def _await_worker(self, service: Service, deadline: float) -> None:
        """Wait until a worker takes envelopes. A worker that ends before is started again, but not for ever."""
        starts = 1
        assert service.ready_file
        while not service.ready_file.exists():
            assert service.process
            if service.process.poll() is not None:
                if starts == WORKER_STARTS:
                    raise ConfigurationError(
                        f"{service.name} ended at each of {starts} starts: {service.ending()}; full log: {service.log}"
                    )
                starts += self._restart_if_ended(service)
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{service.name} was not ready in time; see {service.log}")
            time.sleep(0.05)

    def _announce(self) -> None:
        about = connection.LocalFleet(
            pid=os.getpid(),
            broker_url=self.broker_url,
            store_url=self.store_url,
            flower_url=self.flower_url,
            config=self._config,
            started_at=time.time(),
        )
        with atomically(self.home / "fleet.json") as part:
            part.touch(0o600)
            part.write_bytes(msgspec.json.encode(about))

    def _restart_if_ended(self, service: Service) -> bool:
        """Return whether the service was started again."""
        if service.process is None or service.process.poll() is None:
            return False
        if not service.restarts.due(service.name, service.ending):
            return False
        self._noted = False
        service.start()
        return True

    def _restart_broker_if_ended(self) -> None:
        if self._valkey.process is None or self._valkey.process.poll() is None:
            return
        if not self._broker_restarts.due("the embedded Valkey", self._valkey.ending):
            return
        self._broker_restarts.started()
        self._noted = False
        self._valkey.start()

    # --- leftovers of a killed fleet ---

    def _note_processes(self) -> None:
        """Record the fleet's processes, each with its start time: a process id alone may belong to a later process."""
        notes = []
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                notes.append([process.pid, psutil.Process(process.pid).create_time()])
        (self.home / "processes.json").write_text(json.dumps(notes), encoding="utf-8")
        self._noted = True

    def _end_leftovers(self) -> None:
        try:
            notes = json.loads((self.home / "processes.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        leftovers = []
        for pid, created_at in notes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if abs(process.create_time() - created_at) < 0.01:
                    logger.warning("ending process %d, left behind by a fleet that was killed", pid)
                    process.terminate()
                    leftovers.append(process)
        _, alive = psutil.wait_procs(leftovers, timeout=self.settings.worker.grace_s + 10.0)
        for process in alive:
            process.kill()


def _warn_of_open_files(home: Path) -> None:
    """Warn about files that other users can read, by an older version or by the umask of the caller."""
    if not home.stat().st_mode & 0o011:
        return
    files = [path for path in (*home.glob("*"), *home.glob("logs/*")) if path.is_file()]
    found = [path for path in files if path.stat().st_mode & 0o044]
    if found:
        logger.warning("other users can read %d files as %s; `chmod -R go= %s` ends that", len(found), found[0], home)
