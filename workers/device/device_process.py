"""The process that owns a device: it loads the models and runs one micro-batch after another.

It is forked by `workers.device.fork_server`, or started as ``python -m workers.device.device_process FD``; FD is its
end of a socket pair. Models import torch here, and nowhere else in a worker. Its life: *load* → *loading*, for each
model, → *ready*, then *run* → *done* or *failed*. Stepping requests report in between, and *drop* ends them. Meanwhile
*load* → *loaded* or *unloadable*, and *unload* → *unloaded* (`workers.device.loaded_models`), until the socket closes.
The process dies with its parent: a closed socket ends it at once, even in the middle of a computation.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

import msgspec

from producers.wire.catalogue import KINDS, Task
from results_store.loops.log_lines import JsonLines
from workers.device import accelerator, device_memory, libraries, transfer
from workers.device.loaded_models import LoadedModels, LoadFailed
from workers.device.shared_state import restored
from workers.device.stepping import Answer, SteppingRequests
from workers.device.transfer import Header
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.interface import class_lookup, returned
from workers.models.interface.model import Arrays, Model, ModelSpec

logger = logging.getLogger(__name__)

#: The program of a device process in a new Python; its argument is the descriptor of its socket.
PROGRAM: Final = (sys.executable, "-m", "workers.device.device_process")

#: Frames of the parent that wait here: by urgency, then by arrival. No two numbers are equal.
Frames: TypeAlias = "queue.PriorityQueue[tuple[int, int, Header, Arrays]]"

#: On a CPU, the other processes (worker, broker, database, client) need little of it, but at once: a thread of
#: theirs should not wait for the time slice of a matrix product. The device takes the rest, once its models are loaded.
_NICENESS = 10

#: Replaces the output of a task if the model returned another number of rows than were asked for.
WRONG_OUTPUT = "WrongOutput"


class ModelToLoad(msgspec.Struct, frozen=True):
    """A model in transit from the parent: the fields of `ModelSpec` as plain values."""

    class_: str
    name: str
    folder: str
    revision: str
    tasks: dict[str, tuple[str, str]]  # task: (kind, summary)
    options: dict[str, Any]
    backend: Backend = REFERENCE

    @classmethod
    def from_spec(cls, class_: str, spec: ModelSpec) -> ModelToLoad:
        tasks = {name: (task.kind.name, task.summary) for name, task in spec.tasks.items()}
        return cls(class_, spec.name, str(spec.folder), spec.revision, tasks, dict(spec.options), spec.backend)

    def build(self) -> Model:
        """Return the model, constructed but not loaded. Raises ImportError, AttributeError or TypeError."""
        tasks = {task: Task(task, KINDS[kind], self.name, summary) for task, (kind, summary) in self.tasks.items()}
        spec = ModelSpec(self.name, Path(self.folder), self.revision, tasks, self.options, self.backend)
        model = class_lookup.find(self.class_)(spec)
        if not isinstance(model, Model):
            raise TypeError(f"{self.class_} is not a workers.models.interface.model.Model")
        return model


def log_as_the_worker() -> None:
    """Write log lines in the form of the worker, which has checked its name."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if os.environ.get("ARGOSY_LOG_FORMAT") == "json":
        logging.getLogger().handlers[0].setFormatter(JsonLines())


def main(descriptor: int, begun: int | None = None, *, alone: bool = False) -> None:
    """Serve the parent at the other end of a socket.

    `alone` says that the process shares no libraries with others. `begun` is the descriptor of `_begin_again`.
    """
    sock = socket.socket(fileno=descriptor)
    frames: Frames = queue.PriorityQueue()
    numbers = itertools.count()
    # reading goes on during computation, so that the next batch is already here when this one is done
    reader = threading.Thread(target=_read_frames, args=(sock, frames, numbers), name="argosy frames", daemon=True)
    reader.start()
    header = frames.get()[2] if begun is None else _begun(begun)
    device = header["device"]
    accelerator.set_up(device)

    def tell(said: Header) -> None:
        frames.put((-1, next(numbers), said, {}))

    loaded = LoadedModels(device, _build, _described, tell, measuring=header["measuring"])
    try:
        loaded.load_all(header["models"], lambda key: transfer.send(sock, {"event": "loading", "loads": key}))
    except LoadFailed as failed:
        why = _described(failed.__cause__ or failed)
        transfer.send(sock, {"event": "unloadable", **why, "loads": str(failed)})
        return
    if alone and begun is None and _loads_lighter(loaded.models.values()):
        _begin_again(descriptor, header)
    if device == "cpu":
        device_memory.give_back(device)
        _step_back(reader)
    ready = {"event": "ready", "resident_bytes": device_memory.resident_bytes(device)}
    transfer.send(sock, {**ready, "libraries": libraries.imported()})
    _serve(sock, frames, loaded, device)


def _loads_lighter(models: Collection[Model]) -> bool:
    """Return whether one of these models needs fewer libraries when it is loaded anew."""
    return any(model.loads_lighter for model in models) and hasattr(os, "memfd_create")


def _begin_again(descriptor: int, header: Header) -> NoReturn:
    """Load once more, in the same process with a new Python: the libraries that only a first load needs are then gone.

    They are most of the memory of a small model's process. The parent sends nothing between *load* and *ready*.
    """
    begun = os.memfd_create("load", 0)
    with os.fdopen(begun, "wb", closefd=False) as file:
        file.write(msgspec.msgpack.encode(header))
    os.set_inheritable(descriptor, True)
    os.execve(sys.executable, [*PROGRAM, str(descriptor), str(begun)], dict(os.environ))  # noqa: S606 - our own module


def _begun(descriptor: int) -> Header:
    """Return the frame of `_begin_again`."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        header: Header = msgspec.msgpack.decode(file.read())
    return header


def _step_back(reader: threading.Thread) -> None:
    """Lower the rank of all threads but the reader's. While models were loaded nothing could be answered."""
    rank = min(os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS, 19)
    threads = Path("/proc/self/task")  # elsewhere than on Linux a rank is the whole process's
    for thread in [int(entry.name) for entry in threads.iterdir()] if threads.exists() else [0]:
        if thread != reader.native_id:
            with suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, thread, rank)


def _build(raw: Any) -> Model:
    return msgspec.convert(raw, ModelToLoad).build()


def _serve(sock: socket.socket, frames: Frames, loaded: LoadedModels, device: str) -> None:
    """Run frames, one micro-batch after another; between two of them, take a step of the stepping requests.

    The process ends if it loses its device; the parent then finds the item at fault.
    """
    stepping = SteppingRequests(loaded.models, _described)
    idle_s = 0.0
    while True:
        idle_since = time.perf_counter()
        frame = _next(frames, wait=not stepping.busy)
        idle_s += time.perf_counter() - idle_since if not stepping.busy else 0.0
        answers: Iterator[Answer]
        if frame is None:
            answers = stepping.step()
        elif loaded.takes(frame[0]):
            said = loaded.take(frame[0])
            answers = iter([(said, {})] if said else [])
        elif stepping.takes(frame[0]):
            answers = stepping.take(*frame)  # all waiting requests join before the next step
        else:
            answers = chain([_run(loaded.models[frame[0]["model"]], *frame)], stepping.step())
        for answer, outputs in answers:
            if answer.get("event") == "failed" and accelerator.is_lost(device):
                logger.error("%s is lost to this process: %s", device, answer["message"])
                os._exit(1)
            if "batch" in answer:
                answer, idle_s = answer | {"idle_s": idle_s, **loaded.held()}, 0.0  # noqa: PLW2901 - completed
            transfer.send(sock, answer, outputs)


def _next(frames: Frames, *, wait: bool) -> tuple[Header, Arrays] | None:
    try:
        _, _, header, arrays = frames.get(block=wait)
    except queue.Empty:
        return None
    return header, arrays


def _read_frames(sock: socket.socket, frames: Frames, numbers: Iterator[int]) -> None:
    code = 1
    try:
        while (frame := transfer.receive(sock)) is not None:
            header, arrays = frame
            frames.put((header.get("urgency", 0), next(numbers), header, arrays))
        code = 0
    except BaseException:
        logger.exception("the frames of the parent cannot be read")
    finally:
        # the parent has ended or closed the socket; a running forward pass would not notice an exception
        os._exit(code)


def _run(model: Model, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Run one micro-batch; an exception fails that batch and not the process."""
    wanted = {task: arrays.pop(f"wanted/{task}") for task in header["tasks"]}
    started = time.perf_counter()
    try:
        with restored(model, "forward"):
            outputs = model.forward(arrays, dict(wanted))  # which it may change
        problem = returned.outputs_problem(model, outputs, wanted)
        cached_rows = int(model.cached_rows)
    except BaseException as error:  # noqa: BLE001 - the parent bisects the batch and names the item that raised
        return {"event": "failed", "batch": header["batch"], **_described(error)}, {}
    if problem:
        return {"event": "failed", "batch": header["batch"], "kind": WRONG_OUTPUT, "message": problem}, {}
    took_s = time.perf_counter() - started
    return {"event": "done", "batch": header["batch"], "forward_s": took_s, "cached_rows": cached_rows}, outputs


def _described(error: BaseException) -> Header:
    kind = type(error).__name__
    if kind in ("MemoryError", "OutOfMemoryError"):  # Python's and torch's errors; the name avoids an import of torch
        kind = "OutOfMemory"
    return {
        "kind": kind,
        "message": returned.text(error),
        "traceback": _traceback(error),
    }


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error, limit=20))[-8000:].encode(errors="backslashreplace").decode()
    except Exception as bad:  # noqa: BLE001 - an error of a model's own class, which may raise when it is shown
        return f"(no traceback: {type(bad).__name__})"


if __name__ == "__main__":
    log_as_the_worker()
    main(*map(int, sys.argv[1:]), alone=True)
