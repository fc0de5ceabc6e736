"""The network of an ONNX file on a backend, with the outputs of transformers' networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from producers.wire.errors import ConfigurationError
from workers.models.backends.build import build
from workers.models.backends.choice import Backend
from workers.models.backends.compiled_network import Source
from workers.models.huggingface.onnx_source.onnx_file import OnnxFile

#: The types of inputs that differ from torch's.
_TYPES = {"INT32": torch.int32, "FLOAT16": torch.float16}


class GivenNetwork:
    """Replaces a network of transformers in a pass. The next call may overwrite its outputs."""

    def __init__(self, file: OnnxFile, backend: Backend, labels: Mapping[str, int]) -> None:
        """Build the network. `labels` are the numbers of labels by task, for tasks whose output is `logits`."""
        where = file.checkpoint.where
        self._file, self._labels = file, labels
        self._names = {own: name for name, own in file.outputs.items()}
        example = {name: torch.zeros(0) for name in file.graph.inputs}
        self._types = file.graph.types
        try:
            source = Source(_none, example, file.path, given=file.path, outputs=tuple(file.graph.outputs))
            self._network = build(backend, source, "cpu")
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}.{error}") from error
        except Exception as error:  # runtimes raise errors of every type
            reason = " ".join(str(error).split())[:300]
            raise ConfigurationError(f"{where}: {backend} cannot run {file.path}: {reason}") from error

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        """Return the outputs as transformers' networks do. Raises ConfigurationError for another number of labels."""
        from transformers.utils import ModelOutput

        given = {name: self._input(name, inputs) for name in self._types}
        found = {self._names[own]: _plain(tensor) for own, tensor in self._network(given).items()}
        for task, count in self._labels.items():
            if found["logits"].shape[-1] != count:
                problem = f"{self._file.path} has scores of {found['logits'].shape[-1]} labels for {task!r}"
                where = self._file.checkpoint.where
                raise ConfigurationError(f"{where}: {problem}, and config.json names {count}; correct id2label")
        return ModelOutput(**found)

    def _input(self, name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if name not in inputs and name == "token_type_ids":  # transformers' networks take zeros
            return torch.zeros_like(inputs["input_ids"]).to(_TYPES.get(self._types[name], torch.int64))
        given = inputs[name]
        return given.to(_TYPES.get(self._types[name], given.dtype))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _none() -> nn.Module:
    raise AssertionError("a given file has no module")
