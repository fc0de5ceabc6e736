"""Read the folder of a LoRA adapter as peft writes it, without peft or torch; for both processes."""

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

#: The weights as earlier versions of peft saved them.
_PICKLED = "adapter_model.bin"

#: The prefix that peft puts before the model's own names.
WRAPPED = "base_model.model."

_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

#: Options of LoRA variants with other weights or other arithmetic, which are refused.
_UNSUPPORTED = (
    *("use_dora", "fan_in_fan_out", "use_qalora", "lora_bias", "megatron_config", "trainable_token_indices"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config"),
    *("target_parameters", "use_bdlora", "velora_config"),
)

#: The initialisations that also change the model's own weights, by their beginnings.
_OTHER_WEIGHTS = ("pissa", "olora", "corda", "lora_ga", "loftq")

#: The tensors, among those saved whole, with a row for each label.
_LABELS = re.compile(r"(^|\.)(classifier|score|qa_outputs)(\.out_proj)?\.weight$")


@dataclass(frozen=True)
class Adapter:
    """A folder of a LoRA adapter. `where` is the setting that names it."""

    folder: Path
    where: str

    def check(self) -> None:
        """Raise ConfigurationError if the folder is no adapter, or an adapter of an unsupported kind."""
        config = self.config
        kind = config.get("peft_type")
        if kind != "LORA":
            raise ConfigurationError(f"{self.where}: {self.folder} is a {kind} adapter; only LORA is served")
        if used := [name for name in _UNSUPPORTED if config.get(name)]:
            raise ConfigurationError(f"{self.where}: {used[0]} is not served; merge the adapter into its model instead")
        initialised = str(config.get("init_lora_weights")).lower()
        if initialised.startswith(_OTHER_WEIGHTS):
            problem = f"init_lora_weights {initialised!r} has changed the model's own weights, which rows share"
            remedy = "convert it by peft's path_initial_model_for_weight_conversion, or merge it into its model"
            raise ConfigurationError(f"{self.where}: {problem}; {remedy}")
        if config.get("bias", "none") != "none":
            problem = "the adapter changes biases, which rows of other adapters would share"
            raise ConfigurationError(f"{self.where}: {problem}")
        if odd := [name for name in self.shapes if "lora_" in name and not _PAIR.fullmatch(name)]:
            raise ConfigurationError(f"{self.where}: {odd[0]} is not of a linear layer; only linear layers are served")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / CONFIG).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self.where}: {error}; name a folder saved by peft") from error
        return found

    @cached_property
    def model_config(self) -> Mapping[str, Any]:
        """The ``config.json`` beside the adapter, for the labels' names; empty if there is none."""
        file = self.folder / "config.json"
        found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        return found

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the adapter's tensors, by the model's own names."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / WEIGHTS, framework="numpy") as file:
                return {
                    name.removeprefix(WRAPPED): tuple(file.get_slice(name).get_shape())
                    for name in file.keys()  # noqa: SIM118
                }
        except (OSError, SafetensorError) as error:
            if (self.folder / _PICKLED).is_file() and not (self.folder / WEIGHTS).is_file():
                problem = f"{self.folder} has only {_PICKLED} (pickle, which is never read)"
                remedy = f"load it with peft and save it again, which writes {WEIGHTS}"
                raise ConfigurationError(f"{self.where}: {problem}; {remedy}") from error
            raise ConfigurationError(f"{self.where}: {self.folder / WEIGHTS}: {error}") from error

    @property
    def pairs(self) -> tuple[str, ...]:
        """The names of the linear layers that the adapter changes."""
        return tuple(name.removesuffix(".lora_A.weight") for name in self.shapes if name.endswith(".lora_A.weight"))

    @property
    def saved(self) -> tuple[str, ...]:
        """The tensors that are saved whole: the adapter's own head."""
        return tuple(name for name in self.shapes if not _PAIR.fullmatch(name))

    @property
    def labels(self) -> int | None:
        """The number of labels of the adapter's own head, or None."""
        return next((self.shapes[name][0] for name in self.saved if _LABELS.search(name)), None)

    def scaling(self, module: str) -> float:
        """Return the factor of the product of a layer's two matrices."""
        rank = self.shapes[f"{module}.lora_A.weight"][0]
        alphas: Mapping[str, float] = self.config.get("alpha_pattern") or {}
        own = (alpha for name, alpha in alphas.items() if re.fullmatch(rf"(.*\.)?({name})", module))
        alpha = float(next(own, self.config["lora_alpha"]))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
