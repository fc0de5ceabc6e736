"""The process from which device processes are forked: it has their libraries imported, which takes seconds otherwise.

    python -m workers.device.fork_server FD       for a worker of its own: FD is the socket of its requests
    python -m workers.device.fork_server PATH     for the workers of a fleet: they connect to this socket

It has no threads, loads no model, initialises no GPU and opens no connection to broker or store, so a fork is a process
that has just begun. A process that is not clean in this sense after all (a site hook started a thread) executes the
device process's program in place of the fork. It ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np

from workers.device import device_process, libraries

logger = logging.getLogger(__name__)

#: The most bytes of a request or a report.
MESSAGE_BYTES = 2**20

_PR_SET_PDEATHSIG = 1


def process_name(worker: int) -> str:
    """Return the name by which ``ps`` shows the device process of a worker, at most 15 characters."""
    return f"device {worker}"


class ForkRequest(msgspec.Struct, frozen=True):
    """A request for a device process. With it come the process's socket, the socket for reports, and the descriptors
    of its output and of its errors.

    `worker` is the worker's process id, `libraries` are the modules that are imported before the fork.
    """

    worker: int
    environment: dict[str, str]
    libraries: list[str]


class ForkReport(msgspec.Struct, frozen=True):
    """The process id, with which a pidfd comes; later the exit code, which is a negative number for a signal."""

    pid: int
    code: int | None = None


class ForkServer:
    """Forks a device process for each request, and reports its end. A single thread runs all of it."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._held: dict[int, socket.socket] = {}

    def listen(self, path: str) -> None:
        """Accept connections. Only this user may connect."""
        with suppress(FileNotFoundError):
            Path(path).unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen()
        self._watch(listener.fileno(), lambda: self.serve(listener.accept()[0]), listener)
        signal.signal(signal.SIGTERM, lambda *_: self._forget(listener.fileno()))  # it ends after its processes

    def serve(self, peer: socket.socket) -> None:
        """Take the requests of a connection."""
        self._watch(peer.fileno(), partial(self._take, peer), peer)

    def run(self) -> None:
        """Run until all connections are closed and all processes have ended."""
        while self._handlers:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._handlers:
                    self._handlers[descriptor]()

    def _watch(self, descriptor: int, handler: Callable[[], None], held: socket.socket) -> None:
        self._handlers[descriptor], self._held[descriptor] = handler, held
        self._poll.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> None:
        if descriptor not in self._handlers:
            return
        self._poll.unregister(descriptor)
        del self._handlers[descriptor]
        self._held.pop(descriptor).close()

    def _take(self, peer: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            message, descriptors, _, _ = socket.recv_fds(peer, MESSAGE_BYTES, 4)
            if not message:
                self._forget(peer.fileno())
                return
            self._fork(msgspec.msgpack.decode(message, type=ForkRequest), descriptors)
        except (OSError, msgspec.DecodeError, ValueError):
            logger.exception("no device process can be forked")  # its worker sees its sockets closed
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fork(self, request: ForkRequest, descriptors: list[int]) -> None:
        libraries.load(request.libraries)
        gc.freeze()  # a collection would write into the pages that the processes share
        report = socket.socket(fileno=os.dup(descriptors[1]))
        clean = threading.active_count() == 1
        pid = os.fork()
        if not pid:
            self._become(request, report, descriptors, clean=clean)
        ended = os.pidfd_open(pid)
        self._watch(ended, partial(self._reap, pid, ended), report)
        with suppress(OSError):  # the worker has gone
            socket.send_fds(report, [msgspec.msgpack.encode(ForkReport(pid))], [ended])

    def _reap(self, pid: int, ended: int) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            self._held[ended].send(msgspec.msgpack.encode(ForkReport(pid, code)))
        self._forget(ended)
        os.close(ended)

    def _let_go(self) -> None:
        """Close the server's descriptors in a forked process."""
        for held in self._held.values():
            held.close()
        for descriptor in self._handlers:
            with suppress(OSError):  # it was a socket's
                os.close(descriptor)

    def _become(self, request: ForkRequest, report: socket.socket, descriptors: list[int], *, clean: bool) -> NoReturn:
        """Be the device process, in the forked process."""
        code = 1
        try:
            own, reports, out, err = descriptors
            self._let_go()
            report.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.dup2(out, 1)
            os.dup2(err, 2)
            for descriptor in (reports, out, err):
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(request.environment)
            if not clean or _has_used_gpu():
                os.set_inheritable(own, True)
                program = [*device_process.PROGRAM, str(own)]
                os.execve(sys.executable, program, dict(os.environ))  # noqa: S606 - our own module
            _begin(request)
            device_process.main(own)
            code = 0
        except BaseException:
            logger.exception("the device process ends")
        finally:
            with suppress(Exception):
                sys.stdout.flush()
            os._exit(code)


def _has_used_gpu() -> bool:
    """Return whether torch used a GPU before the fork, which no library does when it is imported."""
    torch = sys.modules.get("torch")
    return bool(torch and torch.cuda._is_in_bad_fork())  # noqa: SLF001 - the only way to ask


def _begin(request: ForkRequest) -> None:
    """Give a forked process its own name, random numbers, number of threads, and garbage collector."""
    gc.enable()
    with suppress(OSError):
        Path("/proc/self/comm").write_text(process_name(request.worker), "ascii")
    np.random.seed()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(request.environment.get("OMP_NUM_THREADS") or torch.get_num_threads()))


def main() -> None:
    device_process.log_as_the_worker()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a library that asks for GPUs starts none
    gc.disable()  # what is imported stays
    server = ForkServer()
    where = sys.argv[1]
    if where.isdecimal():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        server.serve(socket.socket(fileno=int(where)))
    else:
        server.listen(where)
    server.run()


if __name__ == "__main__":
    main()
