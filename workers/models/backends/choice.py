"""The backend of a network and its precision: a plain value, free of torch, for the parent process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from producers.wire.errors import ConfigurationError

Name: TypeAlias = Literal["torch", "onnxruntime", "openvino", "vllm"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]

#: The precisions of each backend. int8 quantises weights per channel. Activations are quantised at run time, or if
#: the model's folder has a network with their ranges (`argosy compress`), by these; OpenVINO needs such a network.
PRECISIONS: Final[dict[Name, tuple[Precision, ...]]] = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "int8"),
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

    `threads` bounds the CPU threads of a pass; 0 keeps the process's own bound.
    """

    name: Name = "torch"
    precision: Precision = "fp32"
    compiled: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise ConfigurationError(f"backend: must be one of {', '.join(get_args(Name))}, not {self.name!r}")
        if self.precision not in PRECISIONS[self.name]:
            known = ", ".join(PRECISIONS[self.name])
            raise ConfigurationError(f"precision: {self.name} runs {known}, not {self.precision!r}")
        if self.compiled and self.name != "torch":
            raise ConfigurationError(f"compile: needs the backend 'torch', not {self.name!r}")

    def __str__(self) -> str:
        """Return a name such as ``openvino-bf16``, for a model's revision: the backend decides its answers too."""
        return f"{self.name}-{self.precision}{'-compiled' if self.compiled else ''}"

    @property
    def is_reference(self) -> bool:
        """Whether this is torch, uncompiled, in fp32: every other backend is compared with its answers."""
        return (self.name, self.precision, self.compiled) == ("torch", "fp32", False)


REFERENCE: Final = Backend()
