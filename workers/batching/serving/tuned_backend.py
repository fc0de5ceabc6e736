"""The backend and batch budget of a model on this machine: set in fleet.toml, or measured here.

A *decision* is measured once, by `workers.training.tuning` in a process of its own (it needs torch), and saved in the
cache, for these weights, device, processor and library versions. `argosy tune` decides again, with labelled texts; a
worker without a decision measures one before it starts. A decision made while other programs kept the machine busy is
*provisional*: it is used, and the next worker that starts on a quiet machine measures again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from filelock import FileLock

from producers.wire.atomic_files import atomically
from producers.wire.errors import ConfigurationError
from workers.batching.serving.processor_load import BUSY, QUIET, ProcessorTimes, others_share
from workers.device.device_process import ModelToLoad
from workers.device.devices import Device, available_cores, pinned_environment
from workers.models.backends.choice import BY_PRECISION, Backend
from workers.models.sources import model_source

logger = logging.getLogger(__name__)

#: Measurements depend on these libraries, besides the weights and the machine.
_LIBRARIES = ("onnxruntime", "openvino", "torch", "transformers")


#: The version of the rule that admits and chooses candidates: decisions by another rule are not used.
_RULE = 3

#: A less precise candidate must be this many times as fast as a more precise one: its slowest turn against the other's
#: fastest.
LEAST_GAIN = 1.1

#: The measuring process's note of the candidate at work, on stderr.
TURN_OF = "turn of {}"
_TURN_OF = re.compile(rf"^{TURN_OF.format('(.+)')}$", re.MULTILINE)

#: The time for which a machine must be quiet before a provisional decision is measured again.
_LOOK_S = 0.2


class MeasuredBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate. `items_per_s` is the median of its turns, `slowest` and `fastest` are the extremes. `agreement` is
    the least cosine between its outputs and the reference's, `shift` the mean difference of scores, `same` the share of
    equal best answers; `accuracy` is by task, where labelled data were used. A candidate that was not admitted, or does
    not run here (no items per second), has a reason.
    """

    backend: Backend
    items_per_s: float
    slowest: float
    fastest: float
    agreement: float
    shift: float
    same: float = 1.0
    accuracy: dict[str, float] = {}
    refused: str = ""


class BackendDecision(msgspec.Struct, frozen=True, kw_only=True):
    """The choice for a model on a device, and the table behind it. `rates` are items/s by batch cost. `others` is the
    share of the processors' time that other programs took meanwhile.
    """

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
    others: float = 0.0

    @property
    def provisional(self) -> bool:
        """Whether the machine was too busy for a measurement that holds."""
        return self.others > BUSY


_Measured = TypeVar("_Measured", bound=MeasuredBackend)


def best_of(measured: Sequence[_Measured]) -> _Measured:
    """Return the choice among the admitted candidates, which must not be none.

    In each precision it is the fastest. Of two precisions the better one wins, unless the slowest turn of the other
    candidate is faster than its fastest turn by `LEAST_GAIN`. So noise never costs precision.
    """
    admitted = [one for one in measured if not one.refused]
    best: _Measured | None = None
    for precision in BY_PRECISION:
        of_this = [one for one in admitted if one.backend.precision == precision]
        fastest = max(of_this, key=lambda one: one.items_per_s, default=None)
        if fastest is not None and (best is None or fastest.slowest > LEAST_GAIN * best.fastest):
            best = fastest
    assert best is not None, "without a device of another runtime the reference is admitted"
    return best


def find(model: ModelToLoad, device: Device) -> BackendDecision | None:
    """Return the saved decision for a model on a device of this machine, or None."""
    try:
        return msgspec.json.decode(_file(model, device).read_bytes(), type=BackendDecision)
    except (OSError, msgspec.DecodeError):  # missing, or of an older form: measure again
        return None


def decide(model: ModelToLoad, device: Device, *, labelled: bool, threads: int = 0) -> BackendDecision:
    """Measure the candidates for a model and save the decision; takes half a minute, or minutes if `labelled`.

    A candidate that kills the measuring process is left out, and the others are measured again. Raises
    ConfigurationError with the measuring process's error if it failed.
    """
    file = _file(model, device)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomically(file) as made:
        measured_apart("workers.training.tuning", model, device, made, threads=threads, labelled=labelled)
    found = find(model, device)
    assert found is not None, "it was just made"
    return found


def measured_apart(
    module: str,
    model: ModelToLoad,
    device: Device,
    file: Path,
    *,
    threads: int = 0,
    within_s: float | None = None,
    **asked: Any,
) -> None:
    """Run a measuring module in a process of its own, which writes what it finds to a file.

    If a candidate kills it, it runs again without that one. Raises ConfigurationError with its error if it failed, and
    TimeoutError if it took longer than `within_s`.
    """
    deadly: dict[str, str] = {}
    ends = time.monotonic() + within_s if within_s is not None else None
    command = [sys.executable, "-m", module, str(file), device.name]
    environment = pinned_environment(device, os.environ, threads=threads)
    while True:
        said = msgspec.json.encode({"model": model, "deadly": deadly, **asked})
        left_s = None if ends is None else max(0.0, ends - time.monotonic())
        try:
            ran = subprocess.run(  # noqa: S603 - our own modules
                command, input=said, env=environment, stderr=subprocess.PIPE, check=False, timeout=left_s
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"models.{model.name}: measuring took over {within_s:.0f} s") from error
        if not ran.returncode:
            return
        at_work = _TURN_OF.findall(ran.stderr.decode(errors="replace"))[-1:]
        if ran.returncode > 0 or not at_work or at_work[0] in (str(model.build().reference), *deadly):
            raise ConfigurationError(f"models.{model.name}: cannot be tuned: {_reason(ran)}")
        deadly[at_work[0]] = _reason(ran)


def _reason(ran: subprocess.CompletedProcess[bytes]) -> str:
    """Return the reason for which the measuring process ended: its last line, or its signal."""
    if ran.returncode < 0:
        return f"the measuring process was ended by {signal.Signals(-ran.returncode).name}"
    lines = ran.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else f"the measuring process ended with exit code {ran.returncode}"


def resolve(model: ModelToLoad, device: Device, *, measure: bool, threads: int = 0) -> BackendDecision | None:
    """Return the decision for a model; None means its reference, or the only backend of a pinned device. If `measure`
    allows it, measures if there is none, or a provisional one and the machine is quiet.

    Several workers that start together measure once. Without a writable cache, nothing is measured.
    """
    if not model.build().tunable:
        return None
    file = _file(model, device)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            found = find(model, device)
            if measure and (found is None or _is_due_again(found)):
                return _measured(model, device, threads) or found
            return found
    except OSError as error:  # the cache belongs to another user, or is mounted read-only
        found = find(model, device)
        if found is None:
            runs_on = device.pinned or model.build().reference
            logger.warning("no backend is measured for model %s, it runs on %s: %s", model.name, runs_on, error)
        return found


def _is_due_again(found: BackendDecision) -> bool:
    """Return whether a decision is provisional, and the machine is quiet now.

    With labelled texts, `argosy tune` measures for minutes, so only its user repeats that.
    """
    if not found.provisional or found.guard == "accuracy":
        return False
    began = ProcessorTimes.now()
    time.sleep(_LOOK_S)
    return others_share(began) <= QUIET


def _measured(model: ModelToLoad, device: Device, threads: int) -> BackendDecision | None:
    logger.info("measuring backends for model %s on %s, once for this machine", model.name, device.name)
    try:
        found = decide(model, device, labelled=False, threads=threads)
    except ConfigurationError as error:
        # a fault of the model itself is reported when it is loaded
        logger.warning("%s; it runs on %s", error, device.pinned or model.build().reference)
        return None
    logger.info("model %s runs on %s, batches of %d", model.name, found.backend, found.batch_cost)
    if found.provisional:
        logger.warning(
            "model %s: this choice is provisional, as other programs took %.0f %% of the processors; the next worker "
            "that starts on a quiet machine measures again",
            model.name,
            100 * found.others,
        )
    return found


def _file(model: ModelToLoad, device: Device) -> Path:
    name = f"{model.name}-{device.name.replace(':', '')}-{digest(model, device)}.json"
    return model_source.cache_folder() / "tuned" / name


def digest(model: ModelToLoad, device: Device) -> str:
    """Return a digest of everything that a measurement depends on: weights, device, processor, versions and rule."""
    machine = (device.description, platform.machine(), _processor(), available_cores())
    described = (_RULE, model.build().revision, sorted(model.tasks), model.options, machine, _versions())
    return hashlib.blake2b(repr(described).encode(), digest_size=8).hexdigest()


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
