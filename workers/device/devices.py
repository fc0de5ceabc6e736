"""The devices of this machine, and the environment that pins a process to one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from producers.wire.connection import without_secrets
from producers.wire.errors import ConfigurationError
from workers.device import gpus, runtime_devices
from workers.models.backends.choice import Backend


@dataclass(frozen=True, slots=True)
class Device:
    """A processor for models: ``cpu``, ``cuda:N``, N counting the GPUs visible to this process, or a device of another
    runtime (`runtime_devices`).
    """

    name: str
    description: str
    memory_bytes: int | None = None
    #: What ``CUDA_VISIBLE_DEVICES`` says in a process that is to see this GPU alone: its UUID, or its number.
    visible_as: str = ""

    @property
    def is_cuda(self) -> bool:
        return self.name.startswith("cuda:")

    @property
    def pinned(self) -> Backend | None:
        """The only backend of the models on this device, or None if they choose."""
        return runtime_devices.pinned(self.name)

    @property
    def of_torch(self) -> str:
        """The name of the device for torch in the process that is pinned to it."""
        return "cuda:0" if self.is_cuda else "cpu"  # the process sees only its own GPU

    @property
    def index(self) -> int:
        return int(self.name.partition(":")[2] or 0)


def cpu() -> Device:
    """Return the CPU with the number of cores available to this process."""
    return Device("cpu", f"{available_cores()} cores")


def available_cores() -> int:
    """Return the number of cores available to this process (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def discover() -> list[Device]:
    """Return this machine's devices, GPUs first. Asks ``nvidia-smi``, so that torch stays out of this process."""
    return [*_gpus(), cpu()]


def select(profile: str, names: tuple[str, ...] = ()) -> list[Device]:
    """Return the devices of a fleet: the named ones, or else those of the profile.

    ``cpu`` is the CPU alone, ``gpu`` every GPU, ``auto`` every GPU and, without any, the CPU.
    Raises ConfigurationError if a named device, or any GPU for ``gpu``, is missing.
    """
    if not names and profile == "cpu":
        return [cpu()]
    found = {device.name: device for device in discover()}
    if names:
        return [_of_runtime(name) if runtime_devices.pinned(name) else _named(name, found) for name in names]
    of_cuda = [device for device in found.values() if device.is_cuda]
    if profile == "gpu" and not of_cuda:
        raise ConfigurationError("worker.profile: 'gpu' but nvidia-smi shows no GPU; use 'cpu', or see `argosy doctor`")
    return of_cuda or [found["cpu"]]


def _named(name: str, found: Mapping[str, Device]) -> Device:
    if name not in found:
        problem = f"no device {name!r}; this machine has {', '.join(found)}"
        raise ConfigurationError(f"worker.devices: {problem}; also ort:PROVIDER and openvino:DEVICE (docs/models.md)")
    return found[name]


def _of_runtime(name: str) -> Device:
    return Device(*runtime_devices.found(name))


def pinned_environment(device: Device, environment: Mapping[str, str], *, threads: int = 0) -> dict[str, str]:
    """Return `environment` with the variables that pin a process to `device`, to be set before its Python starts.

    A pinned GPU is the only one visible to its process, as ``cuda:0``. `threads` bounds the CPU
    threads of the numeric libraries; 0 leaves all available cores to them. The process gets no address and no password
    of broker, store or blob storage: it runs models, and reaches none of these.
    """
    pinned = without_secrets(environment)
    pinned["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if device.is_cuda:
        pinned[gpus.VISIBLE] = device.visible_as or str(device.index)
    elif device.pinned is None:  # a provider of another runtime may be on a GPU
        pinned[gpus.VISIBLE] = ""
    pinned["OMP_NUM_THREADS"] = str(threads or available_cores())
    # waiting threads give their core away: when another process wants it (the parent, the broker, the database),
    # spinning costs half of the throughput or more
    pinned.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    pinned["TOKENIZERS_PARALLELISM"] = "false"
    # otherwise ONNX Runtime writes a session file into the temp folder, and reports to its makers, from its import on
    pinned["ORT_DISABLE_TELEMETRY"] = "1"
    return pinned


def _gpus() -> list[Device]:
    found = gpus.visible_gpus(os.environ.get(gpus.VISIBLE))
    return [
        Device(f"cuda:{place}", gpu.description, gpu.memory_bytes, gpu.visible_as) for place, gpu in enumerate(found)
    ]
