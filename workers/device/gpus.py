"""NVIDIA's GPUs and their MIG slices, as nvidia-smi lists them and ``CUDA_VISIBLE_DEVICES`` admits them."""

from __future__ import annotations

import csv
import logging
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from producers.wire.connection import without_secrets
from producers.wire.errors import ConfigurationError

logger = logging.getLogger(__name__)

#: The variable by which a process sees some GPUs alone.
VISIBLE = "CUDA_VISIBLE_DEVICES"

#: Its values that hide all GPUs.
_NONE = ("", "-1", "void", "none", "NoDevFiles")

_GPU = re.compile(r"GPU (\d+): (.*) \(UUID: (\S+)\)\s*")
_SLICE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (\S+)\)\s*")
_GIGABYTES = re.compile(r"\.(\d+)gb")

#: The beginnings of UUIDs that CUDA knows. Boards such as Jetson's have others.
_UUIDS = ("GPU-", "MIG-")

#: The part of its nominal gigabytes that a slice has at least.
_OF_NOMINAL = 0.97


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a slice of one, which CUDA treats alike. `number` is the GPU's, as nvidia-smi counts in bus order."""

    number: str
    uuid: str
    description: str
    memory_bytes: int | None = None

    @property
    def visible_as(self) -> str:
        """The value of ``CUDA_VISIBLE_DEVICES`` in a process that is to see it alone."""
        return self.uuid if self.uuid.startswith(_UUIDS) else self.number


def visible_gpus(visible: str | None) -> list[Gpu]:
    """Return the GPUs and slices that a process sees with this value of ``CUDA_VISIBLE_DEVICES`` (None: unset).

    Asks ``nvidia-smi``; there are none without it. If it fails, a warning says so. Raises ConfigurationError like
    `admitted`, and if it fails where the variable names GPUs.
    """
    command = shutil.which("nvidia-smi")
    if command is None or (visible is not None and visible.strip() in _NONE):
        return []
    try:
        listing = _said([command, "-L"])
    except (OSError, subprocess.SubprocessError) as error:
        if visible is not None:
            raise ConfigurationError(
                f"{VISIBLE}: is {visible!r}, but nvidia-smi failed: {_words(error)}; mend the driver, or set it "
                "to -1 to run on the CPU"
            ) from error
        logger.warning("no GPU is used, since nvidia-smi failed: %s", _words(error))
        return []
    memory = ""
    with suppress(OSError, subprocess.SubprocessError):
        memory = _said([command, "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"])
    return admitted(listed(listing, memory), visible)


def _said(command: Sequence[str]) -> str:
    return subprocess.run(  # noqa: S603 - fixed words
        command, env=without_secrets(), capture_output=True, text=True, timeout=20, check=True
    ).stdout


def _words(error: OSError | subprocess.SubprocessError) -> str:
    """Return what a command said when it failed, in a line."""
    if isinstance(error, subprocess.CalledProcessError):
        return " ".join(f"{error.stdout} {error.stderr}".split())[:300] or f"exit status {error.returncode}"
    return str(error)


def listed(listing: str, memory: str) -> list[Gpu]:
    """Return the GPUs of ``nvidia-smi -L``, each as its slices if it has any. `memory` is CSV: UUID, memory in MiB."""
    sizes = {row[0].strip(): row[1].strip() for row in csv.reader(memory.splitlines()) if len(row) == 2}
    found: list[Gpu] = []
    whole: Gpu | None = None
    for line in listing.splitlines():
        if gpu := _GPU.fullmatch(line):
            number, name, uuid = gpu.groups()
            size = sizes.get(uuid, "")
            whole = Gpu(number, uuid, name, int(size) * 2**20 if size.isdigit() else None)
            found.append(whole)
        elif (part := _SLICE.fullmatch(line)) and whole:
            profile, uuid = part.groups()
            gigabytes = _GIGABYTES.search(profile)
            size_bytes = int(int(gigabytes[1]) * 2**30 * _OF_NOMINAL) if gigabytes else None
            if found[-1] is whole:
                found.pop()
            found.append(Gpu(whole.number, uuid, f"{whole.description} MIG {profile}", size_bytes))
    return found


def admitted(gpus: Sequence[Gpu], visible: str | None) -> list[Gpu]:
    """Return the GPUs that a value of ``CUDA_VISIBLE_DEVICES`` admits, in its order, as CUDA reads it.

    An entry is a number, a UUID or the beginning of one. The number or UUID of a sliced GPU is its first slice. Raises
    ConfigurationError for an entry that is no GPU of this machine, or is there twice: CUDA would leave out all
    that follow without a word.
    """
    if visible is None:
        return list(gpus)
    found: list[Gpu] = []
    entries = [] if visible.strip() in _NONE else [entry.strip() for entry in visible.split(",")]
    for entry in entries:
        if entry in _NONE:  # CUDA reads no further
            break
        gpu = _named(gpus, entry)
        if gpu is None or gpu in found:
            there = ", ".join(f"{gpu.number} ({gpu.uuid})" for gpu in gpus) or "none"
            problem = f"{entry!r} is there twice" if gpu else f"no GPU {entry!r}; nvidia-smi lists {there}"
            raise ConfigurationError(f"{VISIBLE}: {problem}; correct the variable, or unset it")
        found.append(gpu)
    return found


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.isdecimal():
        return next((gpu for gpu in gpus if int(gpu.number) == int(entry)), None)
    named = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    return named[0] if len(named) == 1 or (named and named[0].uuid == entry) else None
