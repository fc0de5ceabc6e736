"""Which backend runs a network, and at which precision: a plain value that the parent process can hold without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from producers.wire.errors import ConfigurationError

Name: TypeAlias = Literal["torch", "onnxruntime", "openvino", "vllm"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]

#: What each backend can compute in. int8 is dynamic: weights quantised per channel, activations as they come.
PRECISIONS: Final[dict[Name, tuple[Precision, ...]]] = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "fp16"),
    "vllm": ("fp32", "bf16", "fp16"),
}

#: torch's name for the type of weights that a precision loads.
DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend with its precision. `compiled` runs torch's compiler first.

    `threads` bounds the CPU threads of a pass; 0 leaves it to the process.
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
            raise ConfigurationError(f"compile: is for the backend 'torch', not {self.name!r}")

    def __str__(self) -> str:
        """``openvino-bf16``: part of a model's revision, since it is part of its answers."""
        return f"{self.name}-{self.precision}{'-compiled' if self.compiled else ''}"

    @property
    def is_reference(self) -> bool:
        """Whether the answers are those of torch, uncompiled, in fp32: what every other backend is measured against."""
        return (self.name, self.precision, self.compiled) == ("torch", "fp32", False)


REFERENCE: Final = Backend()
