"""The parent's end of a device process: starts, feeds and kills it, and receives its events."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from workers.device import transfer
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device, available_cores, pinned_environment
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
    def close(self) -> None: ...


class ProcessDevice:
    """A device process, and the thread that reads from it. That thread calls `on_event`.

    Models have keys of the caller's choice; the models of the start have their names. With `measuring`, the process
    reports the memory of each.
    """

    def __init__(
        self,
        device: Device,
        models: Sequence[ModelToLoad],
        on_event: Callable[[DeviceEvent], None],
        *,
        threads: int = 0,
        measuring: bool = False,
    ) -> None:
        self.device = device
        self.life = 0
        self._models = {model.name: model for model in models}
        self._measuring = measuring
        self._on_event = on_event
        self._threads = threads or available_cores()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The device process's id, or None where none runs."""
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
        """
        self.close()
        self.life += 1
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "workers.device.device_process", str(theirs.fileno())],
                env=pinned_environment(self.device, os.environ, threads=self._threads),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the parent
            )
        self._socket = ours
        self._reader = threading.Thread(
            target=self._read, args=(ours, self._process, self.life), name=f"device-{self.device.name}"
        )
        self._reader.start()
        load: Header = {
            "device": "cuda:0" if self.device.is_cuda else self.device.name,  # the process sees only its own GPU
            "models": {
                key: one for key, one in msgspec.to_builtins(self._models).items() if keys is None or key in keys
            },
            "measuring": self._measuring,
        }
        with contextlib.suppress(OSError):  # the process has died already; the reader reports it
            transfer.send(ours, load)

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
            self._process.kill()

    def close(self) -> None:
        """End the process and wait until it and its reader have ended."""
        if self._process:
            self._process.kill()
            self._process.wait()
        if self._reader and self._reader is not threading.current_thread():
            self._reader.join()
        if self._socket:
            self._socket.close()
        self._process = self._socket = self._reader = None

    def _send(self, header: Header, arrays: Arrays | None = None) -> None:
        with contextlib.suppress(OSError):  # the process has ended: a ``lost`` event follows
            if self._socket:
                transfer.send(self._socket, header, arrays)

    def _read(self, sock: socket.socket, process: subprocess.Popen[bytes], life: int) -> None:
        while (frame := transfer.receive(sock)) is not None:
            self._on_event(DeviceEvent(life, *frame))
        code = process.wait()
        self._on_event(DeviceEvent(life, {"event": "lost", "message": f"the device process ended with {_exit(code)}"}))


def _exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
