"""The agent in a process of the fleet: it raises in threads, holds threads up, and shifts the clock.

A run copies this file as ``sitecustomize.py`` into a folder on the PYTHONPATH of its processes. Python imports it before
everything else, so the product knows nothing of it. Each process answers a line of JSON on an abstract Unix socket that
is named after its process id. The module needs the standard library only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Name of the agent's own thread.
NAME = "chaos-agent"

#: Seconds within which a thread must run Python code to be held up, and within which an agent must answer.
CATCH_S = 1.0
ANSWER_S = 5.0

#: Errors that a machine short of memory or threads raises anywhere.
ERRORS: Mapping[str, type[Exception]] = {"MemoryError": MemoryError, "RuntimeError": RuntimeError}

_time, _time_ns = time.time, time.time_ns
_shift_s = 0


def install(folder: Path) -> None:
    """Put the agent into `folder`, which goes first in the PYTHONPATH of all processes started from now on."""
    folder.mkdir()
    shutil.copy(__file__, folder / "sitecustomize.py")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])


def ask(pid: int, action: str, **arguments: Any) -> Any:
    """Have the agent of a process act, and return its answer. Raises OSError if no agent answers."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(ANSWER_S)
        peer.connect(_address(pid))
        peer.sendall(json.dumps({"action": action, "arguments": arguments}).encode() + b"\n")
        with peer.makefile() as answers:
            line = answers.readline()
    answer = json.loads(line or '{"error": "no answer"}')
    if "error" in answer:
        raise OSError(f"agent of process {pid}, {action}: {answer['error']}")
    return answer["answer"]


def threads() -> list[tuple[int, str]]:
    """Return this process's threads, as (identifier, name), without the agent's own."""
    return [(each.ident or 0, each.name) for each in threading.enumerate() if each.name != NAME]


def raise_in(thread: int, error: str) -> bool:
    """Raise an error in a thread as soon as it runs Python code. Return False if there is no such thread."""
    found: int = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(ERRORS[error]))
    return found > 0


def hold(threads: list[int], for_s: float) -> bool:
    """Let the first of some threads that runs Python code sleep. Return False if none of them does within CATCH_S.

    Python calls the functions in `gc.callbacks` in the thread whose allocation starts a collection. So the agent has
    nearly every allocation of any thread start one, until a thread is caught. It sleeps in the middle of what it does,
    with the locks that it holds.
    """
    caught = threading.Event()

    def callback(phase: str, _: object) -> None:
        if phase == "start" and threading.get_ident() in threads and not caught.is_set():
            caught.set()
            time.sleep(for_s)

    thresholds = gc.get_threshold()
    deadline = time.monotonic() + CATCH_S
    gc.callbacks.append(callback)
    try:
        gc.set_threshold(1, *thresholds[1:])
        while not caught.wait(0.002) and time.monotonic() < deadline:
            gc.disable()
            _ballast = [_Ballast() for _ in range(10)]  # more new objects than the threshold allows
            gc.enable()
        return caught.is_set()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(callback)


class _Ballast:
    pass


def clock(shift_s: int) -> bool:
    """Shift `time.time` and `time.time_ns`; 0 ends it."""
    global _shift_s  # noqa: PLW0603 - a process has one clock
    _shift_s = shift_s
    return True


def listen() -> None:
    """Start the agent in this process."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(_address(os.getpid()))
    server.listen()
    time.time = lambda: _time() + _shift_s
    time.time_ns = lambda: _time_ns() + _shift_s * 10**9
    threading.Thread(target=_serve, args=(server,), name=NAME, daemon=True).start()


_ACTIONS: Mapping[str, Callable[..., Any]] = {
    "threads": threads, "raise_in": raise_in, "hold": hold, "clock": clock,
}  # fmt: skip


def _serve(server: socket.socket) -> None:
    while True:
        try:
            peer, _ = server.accept()
            with peer, peer.makefile() as requests:
                peer.sendall(json.dumps(_answer(requests.readline())).encode() + b"\n")
        except (OSError, MemoryError):  # the process has no descriptor or no memory left, perhaps by our own doing
            time.sleep(0.1)


def _answer(line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        return {"answer": _ACTIONS[request["action"]](**request["arguments"])}
    except Exception as error:  # noqa: BLE001 - the caller learns of it
        return {"error": f"{type(error).__name__}: {error}"}


def _address(pid: int) -> str:
    return f"\0argosy-chaos-{pid}"


if __name__ == "sitecustomize":
    if "workers.device.fork_server" in sys.orig_argv:  # it has no threads; a device process is a fork of it
        os.register_at_fork(after_in_child=listen)
    else:
        listen()
