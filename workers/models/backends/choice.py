"""The backend of a network and its precision: a plain value, free of torch, for the parent process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from producers.wire.errors import ConfigurationError

Name: TypeAlias = Literal["torch", "onnxruntime", "openvino", "vllm"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]

#: The precisions of each backend. int8 quantises weights per channel. Activations are quantised at run time, or if
#: the model's folder has a network with their ranges (`argosy compress`), by these; OpenVINO needs such a network.
#: ONNX Runtime runs fp16 only from an ONNX file that has it.
PRECISIONS: Final[dict[Name, tuple[Precision, ...]]] = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
    "vllm": ("fp32", "bf16", "fp16"),
}

#: All precisions, the best one first.
BY_PRECISION: Final[tuple[Precision, ...]] = ("fp32", "fp16", "bf16", "int8")

#: The names of torch's dtypes for the weights, by precision.
DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend with its precision. `compiled` compiles the network with torch's compiler.

    `threads` bounds the CPU threads of a pass; 0 keeps the process's own bound. `device` is an execution provider of
    ONNX Runtime without its ending ("CUDA"), or a device of OpenVINO ("NPU", "HETERO:GPU,CPU"); "" is the CPU, and for
    torch the process's device.
    """

    name: Name = "torch"
    precision: Precision = "fp32"
    compiled: bool = False
    threads: int = 0
    device: str = ""

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise ConfigurationError(f"backend: must be one of {', '.join(get_args(Name))}, not {self.name!r}")
        if self.precision not in PRECISIONS[self.name]:
            known = ", ".join(PRECISIONS[self.name])
            raise ConfigurationError(f"precision: {self.name} runs {known}, not {self.precision!r}")
        if self.compiled and self.name != "torch":
            raise ConfigurationError(f"compile: needs the backend 'torch', not {self.name!r}")
        if self.device and self.name not in ("onnxruntime", "openvino"):
            raise ConfigurationError(f"device: {self.name} has no device {self.device!r}")

    def __str__(self) -> str:
        """Return a name such as ``openvino-bf16``, for a model's revision: the backend decides its answers too."""
        on = f"@{self.device}" if self.device else ""
        return f"{self.name}-{self.precision}{'-compiled' if self.compiled else ''}{on}"

    @property
    def is_reference(self) -> bool:
        """Whether this is torch, uncompiled, in fp32: every other backend is compared with its answers."""
        return (self.name, self.precision, self.compiled) == ("torch", "fp32", False)


REFERENCE: Final = Backend()

#: The modules that each backend imports, and the extra that installs them.
_NEEDS = {
    "torch": (("torch",), "worker"),
    "openvino": (("openvino",), "openvino"),
    "onnxruntime": (("onnxruntime", "onnx"), "onnx"),
}


def require(backend: Backend) -> None:
    """Raise ConfigurationError, with the remedy, unless the backend's packages are installed."""
    modules, extra = _NEEDS[backend.name]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(f"backend: {backend.name} needs {module}; pip install 'argosy[{extra}]'")


def named_devices(device: str) -> list[str]:
    """Return the devices in a name of OpenVINO's: both of "HETERO:GPU,CPU", and none of "AUTO" alone."""
    return [] if device == "AUTO" else device.rpartition(":")[2].split(",")


def runtimes() -> list[str]:
    """Return the installed packages of the other runtimes with their versions: ONNX Runtime's has several names."""
    names = ("openvino", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
    found: list[str] = []
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found
