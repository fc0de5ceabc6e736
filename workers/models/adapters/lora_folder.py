"""A LoRA adapter's folder as peft writes it, read without peft or torch: for the parent process, and for `low_rank`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: What peft writes before the names of the model that it wrapped.
WRAPPED = "base_model.model."

_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

#: Variants of LoRA with weights of other kinds or another way of adding them.
_OTHERS = ("use_dora", "fan_in_fan_out", "use_qalora", "lora_bias", "megatron_config", "trainable_token_indices")

#: Of the tensors that are saved whole, those whose rows are labels.
_LABELS = re.compile(r"(^|\.)(classifier|score|qa_outputs)(\.out_proj)?\.weight$")


@dataclass(frozen=True)
class Adapter:
    """`where` is the setting that names the folder."""

    folder: Path
    where: str

    def check(self) -> None:
        """Raise ConfigurationError if the folder is no adapter, or one that is not served."""
        config = self.config
        kind = config.get("peft_type")
        if kind != "LORA":
            raise ConfigurationError(f"{self.where}: {self.folder} is a {kind} adapter; only LORA is served")
        if used := [name for name in _OTHERS if config.get(name)]:
            raise ConfigurationError(f"{self.where}: {used[0]} is not served; merge the adapter into its model instead")
        if config.get("bias", "none") != "none":
            raise ConfigurationError(f"{self.where}: it changes biases, which rows of other adapters would share")
        if odd := [name for name in self.shapes if "lora_" in name and not _PAIR.fullmatch(name)]:
            raise ConfigurationError(f"{self.where}: {odd[0]} is not of a linear layer; only these are served")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / CONFIG).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self.where}: {error}; name a folder as peft saves it") from error
        return found

    @cached_property
    def model_config(self) -> Mapping[str, Any]:
        """The ``config.json`` beside the adapter, if it was saved with one: for the labels' names."""
        file = self.folder / "config.json"
        found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        return found

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of its tensors by the names that the model has for them."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / WEIGHTS, framework="numpy") as file:
                return {
                    name.removeprefix(WRAPPED): tuple(file.get_slice(name).get_shape())
                    for name in file.keys()  # noqa: SIM118
                }
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"{self.where}: {self.folder / WEIGHTS}: {error}") from error

    @property
    def pairs(self) -> tuple[str, ...]:
        """The linear layers that it adds to."""
        return tuple(name.removesuffix(".lora_A.weight") for name in self.shapes if name.endswith(".lora_A.weight"))

    @property
    def saved(self) -> tuple[str, ...]:
        """The tensors that it has whole: those of a head."""
        return tuple(name for name in self.shapes if not _PAIR.fullmatch(name))

    @property
    def labels(self) -> int | None:
        """How many labels its own head has, if it has one."""
        return next((self.shapes[name][0] for name in self.saved if _LABELS.search(name)), None)

    def scaling(self, module: str) -> float:
        """Return what the product of a layer's two matrices is multiplied by."""
        rank = self.shapes[f"{module}.lora_A.weight"][0]
        alphas: Mapping[str, float] = self.config.get("alpha_pattern") or {}
        own = (alpha for name, alpha in alphas.items() if re.fullmatch(rf"(.*\.)?({name})", module))
        alpha = float(next(own, self.config["lora_alpha"]))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
