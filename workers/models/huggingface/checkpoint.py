"""The settings in the files of a Hugging Face folder, read without transformers or torch for the parent process."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError
from workers.models.adapters.lora_folder import Adapter

#: Encoders that number positions from the padding token's number + 1, so their usable positions are fewer than the
#: config says.
_COUNT_AFTER_PADDING = ("camembert", "data2vec-text", "longformer", "luke", "mpnet", "roberta", "xlm-roberta")

#: The longest input of a text model whose folder gives no limit.
_MAX_TOKENS = 512


@dataclass(frozen=True)
class Checkpoint:
    """A folder with ``config.json`` and transformers' other files. `where` is the setting that names it."""

    folder: Path
    where: str

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.read("config.json")

    def read_json(self, name: str) -> Any:
        """Return a JSON file of the folder. Raises ConfigurationError if it is missing or is not JSON."""
        try:
            return json.loads((self.folder / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            remedy = "pull it (argosy models pull), or correct the source"
            raise ConfigurationError(f"{self.where}: {error}; {remedy}") from error

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the folder. Raises ConfigurationError if it is missing or is not a JSON object."""
        value = self.read_json(name)
        if not isinstance(value, dict):
            raise ConfigurationError(f"{self.where}: {self.folder / name} is not a JSON object")
        return value

    def read_if_there(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the folder, or an empty dict if it is missing."""
        return self.read(name) if (self.folder / name).is_file() else {}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels' names in the order of the scores: ``id2label``, or LABEL_0 … like transformers."""
        names = self.config.get("id2label")
        if not names:
            return tuple(f"LABEL_{number}" for number in range(int(self.config.get("num_labels", 2))))
        return tuple(str(name) for _, name in sorted(names.items(), key=lambda pair: int(pair[0])))

    @cached_property
    def function_to_apply(self) -> str:
        """The function from raw output to scores, "sigmoid", "softmax" or "none", chosen like transformers."""
        problem = self.config.get("problem_type")
        if problem == "regression":
            return "none"
        if problem == "multi_label_classification" or len(self.labels) == 1:
            return "sigmoid"
        return "softmax"

    @cached_property
    def pad_id(self) -> int:
        return int(self.config.get("pad_token_id") or 0)

    @cached_property
    def max_tokens(self) -> int:
        """The longest input in tokens, including the special tokens."""
        found = [float(self.read_if_there("sentence_bert_config.json").get("max_seq_length") or math.inf)]
        found += [float(self.read_if_there("tokenizer_config.json").get("model_max_length") or math.inf)]
        positions = self.config.get("max_position_embeddings")
        if isinstance(positions, int) and positions > 0:
            shifted = self.config.get("model_type") in _COUNT_AFTER_PADDING
            found.append(positions - (self.pad_id + 1) * shifted)
        longest = min(found)
        return int(longest) if longest < 1e9 else _MAX_TOKENS


@dataclass(frozen=True)
class AdaptedCheckpoint(Checkpoint):
    """A folder with an adapter: its labels are the labels of the adapter's own head."""

    adapter: Adapter

    @cached_property
    def config(self) -> dict[str, Any]:
        base, own = self.read("config.json"), self.adapter.model_config
        if self.adapter.labels is None:
            return base
        # peft stores no label names; they are known only if the model's config was saved beside the adapter
        named = ("id2label", "problem_type")
        config = {name: value for name, value in base.items() if name not in named}
        config |= {name: own[name] for name in named if own.get(name)}
        if len(config.get("id2label") or ()) not in (0, self.adapter.labels):
            problem = (
                f"config.json beside the adapter names {len(config['id2label'])} labels, not {self.adapter.labels}"
            )
            raise ConfigurationError(f"{self.adapter.where}: {problem}")
        return config | {"num_labels": self.adapter.labels}
