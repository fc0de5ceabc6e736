"""The networks of a text model for training: a head of transformers for each task, all on one backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from producers.wire.errors import ConfigurationError
from workers.device.device_process import ModelToLoad
from workers.models.huggingface.checkpoint import loading
from workers.models.huggingface.network_calls import accepted, call
from workers.models.huggingface.text.encoder import EncoderModel
from workers.models.huggingface.text_head import TextHead

#: The kinds whose networks are compressed: their outputs have logits that a student can be taught.
KINDS = ("text-classification", "token-classification", "question-answering", "zero-shot-classification")

#: The folders of a written model.
BACKBONE, HEADS = "backbone", "heads"

#: The file of a head's own weights.
_HEAD = "head.safetensors"

#: Files and folders of a model that belong to its weights, which the written model has of its own.
_WEIGHTS = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.onnx", "*.bin", "*.h5"),
    *("*.msgpack", "network.xml", "onnx", "openvino", HEADS, ".git", ".cache"),
)


class TaskNetworks(nn.Module):
    """The networks of all tasks, and the backbone that they share. A pass runs the backbone once, then every head.

    `readers` are the heads of the served model, which turn outputs into scores.
    """

    def __init__(self, readers: Mapping[str, TextHead], networks: Mapping[str, Any]) -> None:
        super().__init__()
        backbones = [network.base_model for network in networks.values()]
        self.backbone: Any = max(backbones, key=lambda backbone: len(backbone.state_dict()))
        self.readers = readers
        self._computed = _Computed()
        self.heads = nn.ModuleDict(networks)
        self._put(self._computed)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        """Return each task's raw scores, and the hidden states from the embeddings up."""
        known = {name: tensor for name, tensor in inputs.items() if name in accepted(self.backbone)}
        self._computed.output = found = self.backbone(**known, output_hidden_states=True)
        outputs = {task: call(head, inputs) for task, head in self.heads.items()}
        return {task: self.readers[task].compute(own, inputs) for task, own in outputs.items()}, found.hidden_states

    @contextmanager
    def whole(self) -> Iterator[Mapping[str, Any]]:
        """Yield the tasks' networks with the backbone inside each."""
        self._put(self.backbone)
        try:
            yield dict(self.heads.items())
        finally:
            self._put(self._computed)

    def _put(self, module: nn.Module) -> None:
        for head in self.heads.values():
            setattr(head, head.base_model_prefix, module)

    def save(self, like: Path, out: Path) -> None:
        """Write the folders `backbone` and `heads/TASK`, with the tokenizer and the settings of the folder `like`.

        A head's index names the backbone's weights, so that they are stored once.
        """
        shutil.copytree(like, out / BACKBONE, ignore=shutil.ignore_patterns(*_WEIGHTS))
        self.backbone.save_pretrained(out / BACKBONE)
        shared = out / BACKBONE / "model.safetensors"
        shared.chmod(0o644)  # safetensors writes files that only the owner reads
        for task, head in self.heads.items():
            folder = out / HEADS / task
            head.config.save_pretrained(folder)
            own = {name: tensor.contiguous() for name, tensor in head.state_dict().items()}
            save_file(own, folder / _HEAD, {"format": "pt"})
            (folder / _HEAD).chmod(0o644)
            names = dict.fromkeys(own, _HEAD) | dict.fromkeys(
                self.backbone.state_dict(), f"../../{BACKBONE}/{shared.name}"
            )
            index = json.dumps({"metadata": {}, "weight_map": names}, indent=1)
            (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


class _Computed(nn.Module):
    """Takes the backbone's place in a head: returns the output that the backbone has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


def served(wanted: ModelToLoad) -> EncoderModel:
    """Return the parent's side of a model.

    Raises ConfigurationError unless it is a text model that can be compressed.
    """
    model = wanted.build()
    where = f"models.{wanted.name}"
    if not isinstance(model, EncoderModel):
        problem = f"{type(model).__name__} is not compressed; only text encoders in transformers' format are"
        raise ConfigurationError(f"{where}: {problem}")
    for name, task in model.spec.tasks.items():
        if task.kind.name not in KINDS:
            remedy = f"leave it out; known: {', '.join(KINDS)}"
            raise ConfigurationError(f"{where}.tasks.{name}: {task.kind.name} is not compressed; {remedy}")
    if model.adapters:
        remedy = "merge them into folders of their own first (peft's merge_and_unload)"
        raise ConfigurationError(f"{where}.options.adapters: adapters are not compressed; {remedy}")
    _ = model.revision  # the checks of a worker's start
    return model


def load(model: EncoderModel) -> TaskNetworks:
    """Return the networks of a served model, in fp32 on the CPU, in evaluation mode."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    heads = {}
    for task, head in model.heads.items():
        with loading(head.checkpoint.folder, f"models.{model.spec.name}"):
            heads[task] = getattr(transformers, head.auto).from_pretrained(
                head.checkpoint.folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
    return TaskNetworks(model.heads, heads).eval()
