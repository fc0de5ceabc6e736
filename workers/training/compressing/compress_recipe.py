"""The recipe of a compression: its steps in order, from TOML or from the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from producers.wire.errors import ConfigurationError


class _Sized(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wanted size of the encoder. None keeps a size. `width` goes with `heads`, whose own width stays.

    The rest is trained for `epochs` over the rows, at the rate of learning `rate`, to answer like the original.
    """

    layers: int | None = None
    heads: int | None = None
    inner: int | None = None
    width: int | None = None
    epochs: float
    rate: float = 2e-4

    def __post_init__(self) -> None:
        if not 0 <= self.epochs <= 1000 or not 0 < self.rate < 1:
            raise ValueError("`epochs` must be 0 to 1000, and `rate` 0 to 1")


class Prune(_Sized, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="prune"):
    """Cut the parts that matter least, then train a little. Without sizes, half of the layers go."""

    epochs: float = 1.0


class Distill(_Sized, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="distill"):
    """Train with the teacher's logits and hidden states; with sizes, a student that is first cut to them.

    `features` weighs the hidden states and `labels` the rows' labels against the teacher's answers.
    """

    epochs: float = 5.0
    temperature: float = 2.0
    features: float = 1.0
    labels: float = 0.5


class Adapt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="qat"):
    """Quantisation-aware fine-tuning: train with the rounding of int8 in every matrix product."""

    epochs: float = 1.0
    rate: float = 2e-5


class Int8(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="int8"):
    """Quantise to int8: weights by channel; activations as they come (dynamic), or by ranges measured on rows (static).

    OpenVINO runs static networks only.
    """

    mode: Literal["dynamic", "static"] = "dynamic"
    backend: Literal["onnxruntime", "openvino"] = "onnxruntime"

    def __post_init__(self) -> None:
        if (self.mode, self.backend) == ("dynamic", "openvino"):
            raise ValueError('`backend` "openvino" runs int8 of the mode "static" only')


class Export(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="export"):
    """Serve the network from a file of another runtime, compared with torch when it is written."""

    backend: Literal["onnxruntime", "openvino"] = "openvino"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if (self.backend, self.precision) == ("onnxruntime", "bf16"):
            raise ValueError('`precision` "bf16" is for the `backend` "openvino"')


Step: TypeAlias = Prune | Distill | Adapt | Int8 | Export

#: Steps by the names that the command line accepts.
STEPS: Mapping[str, type[Step]] = {"prune": Prune, "distill": Distill, "qat": Adapt, "int8": Int8, "export": Export}


class CompressRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The steps, in their order. `most_lost` is the loss of a task, in points, that is still accepted.

    `held_out` is the share of the rows that judge; the others teach. Trainings' passes are in `training_precision`.
    """

    steps: tuple[Step, ...]
    most_lost: float = 1.0
    held_out: float = 0.2
    training_precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("`steps` must name at least one step")
        if not 0 <= self.most_lost <= 100 or not 0.01 <= self.held_out <= 0.5:
            raise ValueError("`most_lost` must be 0 to 100 points, and `held_out` 0.01 to 0.5")


def from_file(path: Path) -> CompressRecipe:
    """Read a recipe in TOML. Raises ConfigurationError that names the file and the field."""
    try:
        return _converted(tomllib.loads(path.read_text("utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def from_names(names: Sequence[str], settings: Mapping[str, Any]) -> CompressRecipe:
    """Return the recipe of the command line: names of steps, and settings for all steps that have them."""
    steps = []
    for name in names:
        if name not in STEPS:
            raise ConfigurationError(f"--steps: no step {name!r}; the steps are {', '.join(STEPS)}")
        known = STEPS[name].__struct_fields__
        steps.append({"do": name} | {field: value for field, value in settings.items() if field in known})
    own = {field: value for field, value in settings.items() if field in CompressRecipe.__struct_fields__}
    return _converted({"steps": steps} | own, "--steps")


def _converted(raw: Mapping[str, Any], where: str) -> CompressRecipe:
    try:
        return msgspec.convert(raw, CompressRecipe)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
