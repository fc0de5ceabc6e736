"""The parent's end of a device process: starts, feeds and kills it, and receives its events."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from results_store.loops.loop import TICK_S, Loop, note
from workers.device import libraries, transfer
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device, available_cores, pinned_environment
from workers.device.fork_client import ForkServerClient, StartedProcess
from workers.device.transfer import Header
from workers.models.interface.model import Array, Arrays

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """An event of the device process, or (``lost``) its end.

    `life` counts the starts of the process, so that an event of an earlier life is recognised. `header` is sent by
    `workers.device.device_process`: ``event`` is ready, loaded, unloadable, unloaded, done, failed, stepping or lost.
    """

    life: int
    header: Header
    arrays: Arrays = field(default_factory=dict)


class DeviceClient(Protocol):
    """The interface of a device, for the batcher."""

    @property
    def life(self) -> int: ...
    def offer(self, key: str, model: ModelToLoad) -> None: ...
    def forget(self, key: str) -> None: ...
    def start(self, keys: Collection[str] | None = None) -> None: ...
    def load(self, key: str) -> None: ...
    def unload(self, key: str) -> None: ...
    def run(self, batch: str, model: str, arrays: Arrays, wanted: Mapping[str, Array], *, urgency: int) -> None: ...
    def drop(self, batches: Sequence[str]) -> None: ...
    def kill(self) -> None: ...
    def end(self) -> None: ...
    def close(self) -> None: ...


class ProcessDevice:
    """A device process, and the thread that reads from it. That thread calls `on_event`.

    Models have keys of the caller's choice; the models of the start have their names. With `measuring`, the process
    reports the memory of each. A process that takes longer than `frame_timeout_s` to receive or to send a frame is
    killed. `on_reader` is called with the loop of each new thread.
    """

    def __init__(
        self,
        device: Device,
        models: Sequence[ModelToLoad],
        on_event: Callable[[DeviceEvent], None],
        *,
        threads: int = 0,
        measuring: bool = False,
        frame_timeout_s: float = 120.0,
        on_reader: Callable[[Loop], object] = lambda _: None,
    ) -> None:
        self.device = device
        self.life = 0
        self._models = {model.name: model for model in models}
        self._measuring = measuring
        self._on_event = on_event
        self._threads = threads or available_cores()
        self._forks = ForkServerClient()
        self._process: StartedProcess | None = None
        self._socket: socket.socket | None = None
        self._reader: Loop | None = None
        self._frame_timeout_s = frame_timeout_s
        self._on_reader = on_reader
        self._note = Path()
        self._libraries: list[str] = []  # where the cache cannot be written, the first life's are known to the next
        self._loading = ""  # the model that the starting process loads

    @property
    def pid(self) -> int | None:
        """The device process's id, or None where none has begun."""
        return self._process.pid if self._process else None

    def offer(self, key: str, model: ModelToLoad) -> None:
        """Add a model that may be loaded."""
        self._models[key] = model

    def forget(self, key: str) -> None:
        """Remove a model."""
        self._models.pop(key, None)

    def start(self, keys: Collection[str] | None = None) -> None:
        """Start a new process and let it load the models (all, unless `keys` name some); a ``ready``, ``unloadable`` or
        ``lost`` event follows.

        If the system gives no process, descriptor, memory or thread, its error is raised, and nothing is left behind.
        """
        self.end()
        self.life += 1
        self._note = libraries.note_of((model.class_, model.backend) for model in self._models.values())
        try:
            self._start_process()
        except BaseException:
            self.end()
            raise
        load: Header = {
            "device": self.device.of_torch,
            "models": {
                key: one for key, one in msgspec.to_builtins(self._models).items() if keys is None or key in keys
            },
            "measuring": self._measuring,
        }
        self._send(load)

    def _start_process(self) -> None:
        self._socket, theirs = socket.socketpair()
        limit = struct.pack("ll", max(1, int(self._frame_timeout_s)), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        environment = pinned_environment(self.device, os.environ, threads=self._threads)
        names = libraries.cut(self._libraries or libraries.noted(self._note))
        with theirs:
            process = self._process = self._forks.start(theirs, environment, names)
        readable = select.poll()
        readable.register(self._socket, select.POLLIN)
        self._reader = Loop(
            f"device-{self.device.name}",
            partial(self._read, self._socket, readable, process, self.life),
            failed=partial(self._reader_failed, process, self.life),
        )
        self._reader.start()
        self._on_reader(self._reader)

    def load(self, key: str) -> None:
        """Load a model while others run; a ``loaded`` or ``unloadable`` event follows."""
        self._send({"load": key, "model": msgspec.to_builtins(self._models[key]), "urgency": -1})

    def unload(self, key: str) -> None:
        """Unload a model on which nothing runs; an ``unloaded`` event follows."""
        self._send({"unload": key, "urgency": -1})

    def run(self, batch: str, model: str, arrays: Arrays, wanted: Mapping[str, Array], *, urgency: int) -> None:
        """Send a micro-batch; of the waiting ones, the batch with the lowest `urgency` runs first.

        If the process has ended, this does nothing: a ``lost`` event follows.
        """
        header: Header = {"batch": batch, "model": model, "tasks": list(wanted), "urgency": urgency}
        self._send(header, arrays | {f"wanted/{task}": rows for task, rows in wanted.items()})

    def drop(self, batches: Sequence[str]) -> None:
        """Drop stepping batches; no further event is about them."""
        self._send({"drop": list(batches), "urgency": -1})

    def kill(self) -> None:
        """Kill the process at once; a ``lost`` event follows."""
        if self._process:
            self._kill(self._process)

    def end(self) -> None:
        """End the process and wait until it and its reader have ended. The next start is quick."""
        began = True
        if self._process:
            self._kill(self._process)
            self._process.wait()
            began = self._process.began
        if self._reader:
            self._reader.join()
        if self._process:
            self._process.close()
        if self._socket:
            self._socket.close()
        self._process = self._socket = self._reader = None
        if not began:  # the import of a library may hang
            self._forks.distrust()

    def close(self) -> None:
        """End the process, its reader and all that was started for it."""
        self.end()
        self._forks.close()

    def _kill(self, process: StartedProcess) -> None:
        process.kill()
        if not process.began and self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, header: Header, arrays: Arrays | None = None) -> None:
        try:
            if self._socket:
                transfer.send(self._socket, header, arrays)
        except OSError:  # the process has ended, or does not read: a ``lost`` event follows
            self.kill()

    # --- the reading thread ---

    def _read(self, sock: socket.socket, readable: select.poll, process: StartedProcess, life: int) -> bool:
        if not readable.poll(TICK_S * 1000):
            return True
        note("receiving a frame of the device process", 2 * self._frame_timeout_s)
        frame = transfer.receive(sock)
        if frame is None:
            return self._lost(process, life, "the device process ended")
        if frame[0]["event"] == "loading":
            self._loading = frame[0]["loads"]
            return True
        self._loading = ""
        if "libraries" in frame[0]:
            self._libraries = frame[0].pop("libraries")
            libraries.keep(self._note, self._libraries)
        self._on_event(DeviceEvent(life, *frame))
        return True

    def _lost(self, process: StartedProcess, life: int, message: str) -> bool:
        """Report the end of the process, and end the loop."""
        message += f" with {_exit(process.wait())}"
        if self._loading:
            message, self._loading = f"while model {self._loading} was loaded, {message}", ""
            logger.warning("%s: %s", self.device.name, message)
        self._on_event(DeviceEvent(life, {"event": "lost", "message": message}))
        return False

    def _reader_failed(self, process: StartedProcess, life: int, error: BaseException) -> bool:
        """End the process: a part of a frame may be lost."""
        self._kill(process)
        return self._lost(process, life, f"reading from it failed ({type(error).__name__}: {error}), and it ended")


def _exit(code: int | None) -> str:
    if code is None:
        return "an unknown exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
