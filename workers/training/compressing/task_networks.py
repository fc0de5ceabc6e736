"""The networks of a text model for training: a head of transformers for each task, all on one backbone."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from producers.wire.errors import ConfigurationError
from workers.batching.serving import served_models
from workers.device.device_process import ModelToLoad
from workers.models.huggingface.checkpoint_networks import read_network, replay
from workers.models.huggingface.network_calls import accepted, call
from workers.models.huggingface.text.encoder import EncoderModel
from workers.models.huggingface.text.task_heads import PooledClassification
from workers.models.huggingface.text_head import TextHead
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.kinds.shared_network import TaskNetwork
from workers.training.recipes import served_folder
from workers.training.recipes.served_folder import BACKBONE, HEADS

#: The kinds whose networks are compressed: their outputs have logits that a student can be taught.
KINDS = ("text-classification", "token-classification", "question-answering")

#: Files and folders of a model that belong to its weights, which the written model has of its own.
_WEIGHTS = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.onnx", "*.bin", "*.h5"),
    *("*.msgpack", "network.xml", "onnx", "openvino", HEADS, ".git", ".cache"),
)


class TaskNetworks(nn.Module):
    """The networks of all tasks, and the backbone that they share. A pass runs the backbone once, then every head.

    `readers` are the heads of the served model, which turn outputs into scores. A head is a network of transformers, in
    which a replay takes the backbone's place, or the attention of `argosy train`.
    """

    def __init__(self, readers: Mapping[str, TextHead], backbone: Any, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.readers = {task: copy.copy(reader) for task, reader in readers.items()}
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        for reader in self.readers.values():
            if isinstance(reader, PooledClassification):  # the tasks that it sees are trained with it
                seen = (reader.task.name, *reader.checkpoint.fusion)
                vars(reader)["modules"] = {task: self.heads[task] for task in seen}

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        """Return each task's raw scores, and the hidden states from the embeddings up."""
        known = {name: tensor for name, tensor in inputs.items() if name in accepted(self.backbone)}
        features = self.backbone(**known, output_hidden_states=True)
        found = {task: self._scores(task, features, inputs) for task in self.heads}
        return found, features.hidden_states

    def _scores(self, task: str, features: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        head: Any = self.heads[task]
        if self.is_attention(task):
            return self.readers[task].compute(features, inputs)
        getattr(head, head.base_model_prefix).output = features
        return self.readers[task].compute(call(head, inputs), inputs)

    def is_attention(self, task: str) -> bool:
        """Whether a task's head is the attention of `argosy train`."""
        return isinstance(self.readers[task], PooledClassification)

    def save(self, like: Path, kinds: Mapping[str, LabelledKind], out: Path) -> None:
        """Write the folder as `argosy train` does, with the tokenizer and the settings of the folder `like`."""
        shutil.copytree(like, out / BACKBONE, ignore=shutil.ignore_patterns(*_WEIGHTS))
        for task in self.heads:
            self._config(task).save_pretrained(out / HEADS / task)
        self.write_weights(kinds, out)

    def write_weights(self, kinds: Mapping[str, LabelledKind], out: Path) -> None:
        """Write the weights into the folder, in place of those there."""
        tasks = []
        for task, head in self.heads.items():
            kind = copy.copy(kinds[task])
            kind.head = "attention" if self.is_attention(task) else "transformers"
            tasks.append(TaskNetwork(kind, self.readers[task], head))
        served_folder.write_weights(out, self.backbone, tasks)

    def _config(self, task: str) -> Any:
        if not self.is_attention(task):
            return self.heads[task].config
        from transformers import AutoConfig

        folder = self.readers[task].checkpoint.head  # type: ignore[attr-defined]
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
            setattr(config, name, getattr(self.backbone.config, name))
        return config


def judged(wanted: ModelToLoad, action: str) -> EncoderModel:
    """Return the parent's side of a model. Raises ConfigurationError, which says that an `action` is not done, unless
    labelled rows can judge it.
    """
    model = served_models.build(wanted)
    where = f"models.{wanted.name}"
    if not isinstance(model, EncoderModel):
        problem = f"{type(model).__name__} is not {action}; only text encoders in transformers' format are"
        raise ConfigurationError(f"{where}: {problem}")
    for name, task in model.spec.tasks.items():
        if task.kind.name not in KINDS:
            remedy = f"leave it out; known: {', '.join(KINDS)}"
            raise ConfigurationError(f"{where}.tasks.{name}: {task.kind.name} is not {action}; {remedy}")
    return model


def served(wanted: ModelToLoad) -> EncoderModel:
    """Return the parent's side of a model.

    Raises ConfigurationError unless it is a text model that can be compressed.
    """
    model, where = judged(wanted, "compressed"), f"models.{wanted.name}"
    if model.onnx is not None:
        problem = "an ONNX file is not compressed, since it has no weights to train"
        raise ConfigurationError(f"{where}: {problem}; name the folder of the torch weights")
    if model.adapters:
        remedy = "merge them into folders of their own first (peft's merge_and_unload)"
        raise ConfigurationError(f"{where}.options.adapters: adapters are not compressed; {remedy}")
    _ = model.revision  # the checks of a worker's start
    return model


def load(model: EncoderModel) -> TaskNetworks:
    """Return the networks of a served model, in fp32 on the CPU, in evaluation mode."""
    networks = {task: _loaded(head, f"models.{model.spec.name}") for task, head in model.heads.items()}
    backbones = [network.base_model for network in networks.values()]
    backbone = max(backbones, key=lambda backbone: len(backbone.state_dict()))
    heads: dict[str, nn.Module] = {}
    for task, head in model.heads.items():
        if isinstance(head, PooledClassification):
            heads[task] = head.modules[task]
            continue
        heads[task] = networks[task]
        setattr(networks[task], networks[task].base_model_prefix, replay())
    return TaskNetworks(model.heads, backbone, heads).eval()


def _loaded(head: TextHead, where: str) -> Any:
    network, report = read_network(head.auto, head.checkpoint.folder, where, torch.float32)
    if any(name.startswith("pooler.") for name in report["missing_keys"]):
        network.pooler = None  # transformers would make one of random numbers
    return network
