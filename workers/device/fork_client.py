"""The worker's end of a fork server: it asks for device processes, kills them, and waits for their ends."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Final, Protocol

import msgspec

from workers.device.device_process import PROGRAM
from workers.device.fork_server import MESSAGE_BYTES, ForkReport, ForkRequest

#: The variable with the socket of a fleet's fork server. Without it a worker has its own server; with `NONE`, none, and
#: device processes are new Pythons.
VARIABLE: Final = "ARGOSY_FORK_SERVER"
NONE: Final = "none"

#: The most seconds between the end of a process's socket and the report that the process has begun.
FIRST_REPORT_S = 1.0


def can_fork() -> bool:
    """Return whether this system has what a fork server needs: Linux from 5.3 on. Elsewhere no library expects it."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class StartedProcess(Protocol):
    """A device process that was started. `wait` returns its exit code, a negative number for a signal."""

    @property
    def pid(self) -> int | None: ...
    @property
    def began(self) -> bool: ...
    def kill(self) -> None: ...
    def wait(self) -> int | None: ...
    def close(self) -> None: ...


class ForkedProcess:
    """A device process that a fork server forks, or has forked. Thread-safe.

    `reports` is the socket of the server's reports. Until the first has come, there is no process.
    """

    def __init__(self, reports: socket.socket) -> None:
        reports.setblocking(False)
        self._reports = reports
        self._lock = threading.Lock()
        self._pidfd = -1
        self._over = False  # no report will come
        self._pid: int | None = None
        self._code: int | None = None

    def kill(self) -> None:
        """End the process at once. A process that has not begun ends when it finds its socket closed."""
        with self._lock:
            self._read()
            with suppress(ProcessLookupError):
                if self._pidfd >= 0:
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                elif self._pid and self._code is None:  # there was no descriptor for the pidfd
                    os.kill(self._pid, signal.SIGKILL)

    @property
    def pid(self) -> int | None:
        with self._lock:
            self._read()
            return self._pid

    @property
    def began(self) -> bool:
        with self._lock:
            self._read()
            return self._pid is not None

    def wait(self) -> int | None:
        """Wait for the end of a process that has begun; return its exit code, or None if nobody knows it."""
        if not self.began:  # it may have ended before its report came
            _wait_for(self._reports.fileno(), FIRST_REPORT_S)
        while self.began and not self._over:
            _wait_for(self._reports.fileno())
        if self._pidfd >= 0:
            _wait_for(self._pidfd)
        return self._code

    def close(self) -> None:
        """Forget the process, which must have ended."""
        with self._lock:
            self._over = True
            self._reports.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
            self._pidfd = -1

    def _read(self) -> None:
        """Take the reports that are here."""
        while not self._over:
            try:
                message, pidfds, _, _ = socket.recv_fds(self._reports, MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                message, pidfds = b"", []
            if not message:
                self._over = True
                return
            report = msgspec.msgpack.decode(message, type=ForkReport)
            self._pid, self._code = report.pid, report.code
            self._over = report.code is not None
            if pidfds:
                self._pidfd = pidfds[0]


class SpawnedProcess:
    """A device process in a new Python."""

    began = True

    def __init__(self, device: socket.socket, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*PROGRAM, str(device.fileno())],
            env=dict(environment),
            pass_fds=[device.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is for the worker
        )

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int | None:
        return self._process.wait()

    def close(self) -> None:
        """It holds nothing."""


class ForkServerClient:
    """Asks the fleet's fork server, or a server of its own, which it starts when it needs it. Used by one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._alone = False

    def start(self, device: socket.socket, environment: Mapping[str, str], libraries: Sequence[str]) -> StartedProcess:
        """Start a device process with `device` as its socket. Raises OSError if the system gives no process,
        descriptor or memory.
        """
        if not can_fork() or os.environ.get(VARIABLE) == NONE:
            return SpawnedProcess(device, environment)
        with ExitStack() as files:
            reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            files.callback(reports.close)
            with theirs:
                request = msgspec.msgpack.encode(ForkRequest(os.getpid(), dict(environment), list(libraries)))
                given = [device.fileno(), theirs.fileno(), 1, 2]
                if self._alone or not _sent_to_fleet(request, given):
                    socket.send_fds(self._server(environment), [request], given)
            files.pop_all()
        return ForkedProcess(reports)

    def distrust(self) -> None:
        """Have no more processes from the server that is there: it was asked, and none began."""
        self._alone = True
        self.close()

    def close(self) -> None:
        """End the server of its own."""
        if self._requests:
            self._requests.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process = self._requests = None

    def _server(self, environment: Mapping[str, str]) -> socket.socket:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    [sys.executable, "-m", "workers.device.fork_server", str(theirs.fileno())],
                    env=dict(environment),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C in the terminal is for the worker
                )
        assert self._requests
        return self._requests


def _sent_to_fleet(request: bytes, descriptors: list[int]) -> bool:
    path = os.environ.get(VARIABLE)
    if not path:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.connect(path)
            socket.send_fds(server, [request], descriptors)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            return False  # it has ended, and the fleet starts it again
    return True


def _wait_for(descriptor: int, timeout_s: float | None = None) -> None:
    readable = select.poll()
    readable.register(descriptor, select.POLLIN)
    readable.poll(None if timeout_s is None else timeout_s * 1000)
