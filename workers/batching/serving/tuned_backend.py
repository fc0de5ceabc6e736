"""The backend and batch budget of a model on this machine: set in fleet.toml, or measured here.

A *decision* is measured once, by `workers.training.tuning` in a process of its own (it needs torch), and saved in the
cache, for these weights, device, processor and library versions. `argosy tune` decides again, with labelled texts; a
worker without a decision measures one before it starts.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec
from filelock import FileLock

from producers.wire.atomic_files import atomically
from producers.wire.errors import ConfigurationError
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device, available_cores, pinned_environment
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.sources import model_source

logger = logging.getLogger(__name__)

#: Measurements depend on these libraries, besides the weights and the machine.
_LIBRARIES = ("onnxruntime", "openvino", "torch", "transformers")


class MeasuredBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate. `agreement` is the least cosine between its outputs and the reference's, `shift` the mean difference
    of scores, `same` the share of equal best answers; `accuracy` is by task, where labelled data were used. A candidate
    that was not admitted, or does not run here (no items per second), has a reason.
    """

    backend: Backend
    items_per_s: float
    agreement: float
    shift: float
    same: float = 1.0
    accuracy: dict[str, float] = {}
    refused: str = ""


class BackendDecision(msgspec.Struct, frozen=True, kw_only=True):
    """The choice for a model on a device, and the table behind it. `rates` are items/s by batch cost."""

    model: str
    revision: str
    device: str
    decided_at: float
    guard: Literal["accuracy", "agreement"]
    sample: int
    candidates: tuple[MeasuredBackend, ...]
    backend: Backend
    rates: dict[int, float]
    batch_cost: int


def find(model: ModelToLoad, device: Device) -> BackendDecision | None:
    """Return the saved decision for a model on a device of this machine, or None."""
    try:
        return msgspec.json.decode(_file(model, device).read_bytes(), type=BackendDecision)
    except (OSError, msgspec.DecodeError):  # missing, or of an older form: measure again
        return None


def decide(model: ModelToLoad, device: Device, *, labelled: bool, threads: int = 0) -> BackendDecision:
    """Measure the candidates for a model and save the decision; takes half a minute, or minutes if `labelled`.

    Raises ConfigurationError with the measuring process's error if it failed.
    """
    file = _file(model, device)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomically(file) as made:
        command = [sys.executable, "-m", "workers.training.tuning", str(made), device.name]
        environment = pinned_environment(device, os.environ, threads=threads)
        asked = msgspec.json.encode({"model": model, "labelled": labelled})
        ran = subprocess.run(command, input=asked, env=environment, stderr=subprocess.PIPE, check=False)  # noqa: S603
        if ran.returncode:
            said = ran.stderr.decode(errors="replace").strip()
            raise ConfigurationError(f"models.{model.name}: cannot be tuned: {said[-2000:]}")
    found = find(model, device)
    assert found is not None, "it was just made"
    return found


def resolve(model: ModelToLoad, device: Device, *, measure: bool, threads: int = 0) -> BackendDecision | None:
    """Return the decision for a model, measuring if there is none and `measure` allows it; None means the reference
    backend.

    Several workers that start together measure once. Without a writable cache, nothing is measured.
    """
    if not model.build().tunable:
        return None
    file = _file(model, device)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            return find(model, device) or (_measured(model, device, threads) if measure else None)
    except OSError as error:  # the cache belongs to another user, or is mounted read-only
        found = find(model, device)
        if found is None:
            logger.warning("no backend is measured for model %s, it runs on %s: %s", model.name, REFERENCE, error)
        return found


def _measured(model: ModelToLoad, device: Device, threads: int) -> BackendDecision | None:
    logger.info("measuring backends for model %s on %s, once for this machine", model.name, device.name)
    try:
        found = decide(model, device, labelled=False, threads=threads)
    except ConfigurationError as error:
        # a fault of the model itself is reported when it is loaded
        logger.warning("%s; it runs on %s", error, REFERENCE)
        return None
    logger.info("model %s runs on %s, batches of %d", model.name, found.backend, found.batch_cost)
    return found


def _file(model: ModelToLoad, device: Device) -> Path:
    machine = (device.description, platform.machine(), _processor(), available_cores())
    described = (model.build().revision, sorted(model.tasks), model.options, machine, _versions())
    digest = hashlib.blake2b(repr(described).encode(), digest_size=8).hexdigest()
    return model_source.cache_folder() / "tuned" / f"{model.name}-{device.name.replace(':', '')}-{digest}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _versions() -> list[str]:
    found = []
    for package in _LIBRARIES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
