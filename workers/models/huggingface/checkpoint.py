"""The settings in the files of a Hugging Face folder, read without transformers or torch for the parent process."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError
from workers.models.adapters.lora_folder import Adapter
from workers.models.huggingface import refused_folders

#: The settings that name the positions of a network.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")

#: Encoders that number positions from the padding token's number + 1, so their usable positions are fewer than the
#: config says.
_COUNT_AFTER_PADDING = (
    *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)

#: The rotary embeddings whose angles depend on the length of the longest text of a pass, by the names in configs.
_TURNED_BY_LENGTH = ("longrope", "su")

#: The longest input of a text model whose folder gives no limit.
_MAX_TOKENS = 512

#: The most bytes of a settings file, and the most labels and layers of a model.
_MOST_BYTES = 64 * 2**20
_MOST_LABELS = 100_000
_MOST_LAYERS = 2000


#: The files with sentence-transformers' settings of a network; old versions name them by its architecture.
_SENTENCE_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

#: The files that may name a repository's own code, in place of classes of transformers.
_CODE_NAMED_IN = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")

_WEIGHTS = "model.safetensors"

#: The first bytes of a file that Git LFS has not fetched.
_POINTER = b"version https://git-lfs"


@contextmanager
def loading(folder: Path, where: str) -> Iterator[None]:
    """Turn the errors of transformers' loading into ConfigurationError, which names the setting and the folder."""
    try:
        yield
    except (ConfigurationError, MemoryError):
        raise
    except Exception as error:  # transformers and the libraries below it raise errors of every type
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise
        config = Checkpoint(folder, where).read_if_there("config.json")
        saved_as = next(iter(config.get("architectures") or ["no architecture"]))
        reason = refused_folders.reason(folder, config, error)
        problem = f"transformers cannot load {folder}, saved from {saved_as}: {reason}"
        raise ConfigurationError(f"{where}: {problem}") from error


@dataclass(frozen=True)
class Checkpoint:
    """A folder with ``config.json`` and transformers' other files. `where` is the setting that names it."""

    folder: Path
    where: str

    @cached_property
    def config(self) -> dict[str, Any]:
        if not (self.folder / "config.json").is_file() and (found := refused_folders.without_config(self.folder)):
            raise ConfigurationError(f"{self.where}: {self.folder} {found[0]}; {found[1]}")
        config = self.read("config.json")
        if "model_type" not in config and "pretrained_cfg" in config:
            problem = f"{self.folder} is a model of timm, which is not served"
            raise ConfigurationError(f"{self.where}: {problem}; write a class for it (docs/models.md)")
        return config

    def read_json(self, name: str) -> Any:
        """Return a JSON file of the folder. Raises ConfigurationError if it is missing, no JSON, or too large."""
        path = self.folder / name
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError(f"{path} has over {_MOST_BYTES >> 20} MiB")
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            remedy = "pull it (argosy models pull), or correct the source"
            raise ConfigurationError(f"{self.where}: {path.name}: {error}; {remedy}") from error

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON object of the folder.

        Raises ConfigurationError if it is missing, is no object, or asks for more than any model has.
        """
        value, path = self.read_json(name), self.folder / name
        if not isinstance(value, dict):
            raise ConfigurationError(f"{self.where}: {path} is not a JSON object")
        if problem := _excess(value):
            raise ConfigurationError(f"{self.where}: {path}: {problem}; do not trust this folder")
        return value

    def read_if_there(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the folder, or an empty dict if it is missing."""
        return self.read(name) if (self.folder / name).is_file() else {}

    @property
    def has_weights(self) -> bool:
        """Whether the folder has weights as safetensors."""
        return any((self.folder / name).is_file() for name in (_WEIGHTS, f"{_WEIGHTS}.index.json"))

    def check_weights(self) -> None:
        """Raise ConfigurationError, with the remedy, if the folder has no weights as safetensors."""
        if method := refused_folders.quantised(self.folder, self.config):
            problem = f"the weights in {self.folder} are quantised ({method}), which is not served"
            raise ConfigurationError(f"{self.where}: {problem}; name the folder of the model before its quantisation")
        if (self.folder / "adapter_config.json").is_file():
            problem = f"{self.folder} has an adapter (adapter_config.json) beside the model's own weights"
            remedy = "move the adapter to a folder of its own, and name that in options.adapters"
            raise ConfigurationError(f"{self.where}: {problem}; {remedy}")
        files = [self.folder / name for name in (_WEIGHTS, f"{_WEIGHTS}.index.json")]
        there = next((file for file in files if file.is_file()), None)
        if there is None:
            found, remedy = refused_folders.without_weights(self.folder)
            raise ConfigurationError(f"{self.where}: {self.folder} has no {_WEIGHTS}{found}; {remedy}")
        self._refuse_pointer(there)
        for shard in self._shards(there):
            if not shard.is_file():
                problem = f"{there.name} names {shard.name}, which is not in {self.folder}"
                raise ConfigurationError(f"{self.where}: {problem}; pull it again (argosy models pull)")
            self._refuse_pointer(shard)

    def refuse_own_code(self, classes: Collection[str]) -> None:
        """Raise ConfigurationError if the folder names code of its own for one of these classes of transformers."""
        for name in _CODE_NAMED_IN:
            named = self.read_if_there(name).get("auto_map") or {}
            named = named if isinstance(named, dict) else {"AutoTokenizer": named}  # as earlier versions saved it
            if found := [class_ for class_ in classes if named.get(class_)]:
                problem = f"{name} in {self.folder} names code of its own for {found[0]} (auto_map), which is never run"
                remedy = (
                    'use a model without such code, or set options.own_code = "ignored" if transformers has the same'
                )
                raise ConfigurationError(f"{self.where}: {problem}; {remedy}")

    def _refuse_pointer(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise ConfigurationError(f"{self.where}: {path} is a Git LFS pointer; fetch the file: git lfs pull")

    def _shards(self, there: Path) -> list[Path]:
        """Return the files that an index of weights names; none for weights in a single file, or an unread index."""
        if there.name == _WEIGHTS:
            return []
        places = self.read(there.name).get("weight_map") if there.stat().st_size <= _MOST_BYTES else None
        return [self.folder / name for name in sorted(set(places.values()))] if isinstance(places, dict) else []

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels' names in the order of the scores: ``id2label``, or LABEL_0 … like transformers."""
        names = self.config.get("id2label")
        try:
            if not names:
                return tuple(f"LABEL_{number}" for number in range(int(self.config.get("num_labels", 2))))
            by_number = {int(number): str(name) for number, name in names.items()}
        except (TypeError, ValueError, AttributeError) as error:
            problem = 'the labels have no numbers; write id2label as {"0": "first", "1": "second"}'
            raise ConfigurationError(f"{self.where}: config.json: {problem}") from error
        if by_number.keys() != set(range(len(names))):
            missing = next(number for number in range(len(names)) if number not in by_number)
            problem = f"id2label has {len(names):,} labels, and none of the number {missing}"
            raise ConfigurationError(f"{self.where}: config.json: {problem}; number them from 0 without gaps")
        return tuple(by_number[number] for number in range(len(names)))

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
    def function_of_recordings(self) -> str:
        """The function of transformers' audio and video pipelines, in which a single label is no exception."""
        problem = self.config.get("problem_type")
        return {"regression": "none", "multi_label_classification": "sigmoid"}.get(str(problem), "softmax")

    @cached_property
    def pad_id(self) -> int:
        """The padding token. A checkpoint without one, or with a number below 0, is padded with its end token."""
        pad, end = self.config.get("pad_token_id"), self.config.get("eos_token_id")
        end = end[0] if isinstance(end, list) and end else end
        return next((int(one) for one in (pad, end) if isinstance(one, int) and one >= 0), 0)

    @cached_property
    def sentence_settings(self) -> dict[str, Any]:
        """The settings of sentence-transformers for the network and its tokenizer; empty if there are none."""
        return next((found for name in _SENTENCE_SETTINGS if (found := self.read_if_there(name))), {})

    @cached_property
    def short_tokens(self) -> int | None:
        """The most tokens of a short text, if the network turns longer ones by other angles (LongRoPE); else None."""
        for name in ("rope_parameters", "rope_scaling"):
            rope = self.config.get(name)
            if isinstance(rope, dict) and (rope.get("rope_type") or rope.get("type")) in _TURNED_BY_LENGTH:
                found = rope.get("original_max_position_embeddings")
                found = found or self.config.get("original_max_position_embeddings")
                return found if isinstance(found, int) else None
        return None

    @cached_property
    def max_tokens(self) -> int:
        """The longest input in tokens, including the special tokens."""
        found = [float(self.sentence_settings.get("max_seq_length") or math.inf)]
        found += [float(self.read_if_there("tokenizer_config.json").get("model_max_length") or math.inf)]
        positions = next((self.config[name] for name in _POSITIONS if name in self.config), None)
        if isinstance(positions, int) and positions > 0:
            shifted = self.config.get("model_type") in _COUNT_AFTER_PADDING
            found.append(positions - (self.pad_id + 1) * shifted)
        longest = min(found)
        return int(longest) if longest < 1e9 else _MAX_TOKENS


def _excess(settings: dict[str, Any]) -> str:
    """Return the setting that asks for too many labels or layers, also within settings of a part of the model."""
    for name, value in settings.items():
        if name in ("id2label", "label2id", "num_labels"):
            count = len(value) if isinstance(value, dict) else value
            most = _MOST_LABELS
        elif ("layer" in name or "depth" in name) and "size" not in name:  # Gemma 3n has tables for its layers
            count, most = value, _MOST_LAYERS
        elif isinstance(value, dict) and (problem := _excess(value)):
            return f"{name}.{problem}"
        else:
            continue
        if isinstance(count, int | float) and count > most:
            return f"{name} is over {most:,}"
    return ""


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
