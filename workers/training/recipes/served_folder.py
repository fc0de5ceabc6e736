"""The folder of a training that a worker serves: ``fleet.toml``, ``backbone/``, and ``heads/TASK/``.

Its settings are written before the training, so that rows are read by the worker's own code, and its weights after it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from producers.wire.atomic_files import atomically
from producers.wire.catalogue import Task
from workers.models import huggingface
from workers.models.huggingface.checkpoint import loading
from workers.models.huggingface.text import task_heads
from workers.models.interface.model import Model, ModelSpec
from workers.training import toml_text
from workers.training.kinds.labelled_kind import LabelledKind
from workers.training.kinds.shared_network import TaskNetwork
from workers.training.kinds.written_kinds import WrittenKind
from workers.training.loop.trainer import LOG
from workers.training.recipes.recipe_file import RecipeFile

BACKBONE, HEADS, SETTINGS = "backbone", "heads", "fleet.toml"

_GENERATION = "generation_config.json"

#: The most tokens that a worker writes, unless the model's options have more.
_MOST_UNASKED = 256

#: The folder of the rows' files.
ROWS = "rows"

#: Files of a backbone's folder that hold its weights, other weights, or the weights of other runtimes.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.h5", "*.msgpack", "*.onnx")
_OTHER = ("adapter_*", "onnx", "openvino", ".git", ".cache")


def check_free(recipe: RecipeFile, *, resume: bool) -> None:
    """Raise ConfigurationError if the result's folder has a training that is not resumed, or files of other origin."""
    there = {path.name for path in recipe.out.iterdir()} if recipe.out.is_dir() else set()
    if LOG in there and not resume:
        problem = f"{recipe.out} has a training; add --resume to go on with it, or name another folder"
        raise recipe.wrong("train.out", problem)
    if there and not there & {LOG, HEADS, BACKBONE}:
        raise recipe.wrong("train.out", f"{recipe.out} has other files, such as {min(there)}; name another folder")


def write_settings(out: Path, backbone: Path, tasks: Sequence[LabelledKind]) -> None:
    """Write the folder without weights. Raises ConfigurationError for a backbone that transformers cannot read."""
    from transformers import AutoConfig

    def left_out(folder: str, names: list[str]) -> set[str]:
        if Path(folder) != backbone:
            return set()
        return {*shutil.ignore_patterns(*_WEIGHTS, *_OTHER)(folder, names)}

    shutil.copytree(backbone, out / BACKBONE, ignore=left_out, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for task in tasks:
        if task.head:
            with loading(backbone, str(backbone)):
                config = AutoConfig.from_pretrained(
                    backbone, local_files_only=True, trust_remote_code=False, **task.config
                )
            if task.head == "attention":
                setattr(config, task_heads.SETTINGS, {"fusion": list(task.fusion)})
            config.save_pretrained(out / HEADS / task.name)


def model(out: Path, name: str, tasks: Sequence[LabelledKind], max_tokens: int) -> Model:
    """Return the worker's model of the folder, not loaded."""
    served = {task.name: Task(task.name, task.kind, name, "") for task in tasks}
    return huggingface.model_for(ModelSpec(name, out / BACKBONE, "", served, _options(out / HEADS, tasks, max_tokens)))


def _options(heads: Path, tasks: Sequence[LabelledKind], max_tokens: int) -> dict[str, Any]:
    options: dict[str, Any] = {"max_tokens": max_tokens} if max_tokens else {}
    own = {task.name: {"heads": str(heads / task.name)} if task.head else task.options for task in tasks}
    for name in dict.fromkeys(name for each in own.values() for name in each):
        options[name] = {task: each[name] for task, each in own.items() if name in each}
    longest = max((task.lengths[0] for task in tasks if isinstance(task, WrittenKind)), default=0)
    return options | ({"max_new_tokens": longest} if longest > _MOST_UNASKED else {})


def change_generation(out: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the settings of generation in the folder's backbone."""
    from transformers import GenerationConfig

    folder = out / BACKBONE
    if (folder / _GENERATION).is_file():
        found = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = GenerationConfig.from_model_config(config)
    GenerationConfig.from_dict(change(found.to_diff_dict())).save_pretrained(folder)


def write_weights(out: Path, backbone: Any, tasks: Sequence[TaskNetwork]) -> None:
    """Write the weights of a trained network, whose backbone has no adapters any more."""
    backbone.save_pretrained(out / BACKBONE)
    for path in (out / BACKBONE).glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    shards = {name: f"../../{BACKBONE}/{file}" for name, file in _shards(out / BACKBONE)}
    for task in tasks:
        if task.module is None:
            continue
        folder = out / HEADS / task.kind.name
        own = {name: tensor.contiguous() for name, tensor in task.module.state_dict().items()}
        with atomically(folder / task_heads.WEIGHTS, durable=True) as part:
            save_file(own, part, {"format": "pt"})
        (folder / task_heads.WEIGHTS).chmod(0o644)
        if task.kind.head == "transformers":
            _write_index(folder, task.module, own, shards)


def _write_index(folder: Path, module: Any, own: Mapping[str, torch.Tensor], shards: dict[str, str]) -> None:
    """Let transformers load the head as a checkpoint in several files, of which the backbone's are shared."""
    index = {"metadata": {}, "weight_map": dict.fromkeys(own, task_heads.WEIGHTS) | shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["architectures"] = [type(module).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _shards(folder: Path) -> Iterator[tuple[str, str]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            yield from ((name, path.name) for name in file.keys())  # noqa: SIM118 - it is no dict


def in_units(module: Any, scale: float, shift: float) -> None:
    """Let a head of transformers multiply its output by `scale` and add `shift`."""
    last = last_layer(module)
    with torch.no_grad():
        last.weight.mul_(scale)
        if last.bias is None:
            last.bias = nn.Parameter(last.weight.new_zeros(last.out_features))
        last.bias.mul_(scale).add_(shift)


def last_layer(module: Any) -> nn.Linear:
    """Return the layer of a head that gives the scores."""
    if isinstance(module, nn.Linear):
        return module
    count = module.config.num_labels
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer.out_features == count][-1]


def write_fleet(recipe: RecipeFile, out: Path, tasks: Sequence[LabelledKind], class_: str = "") -> Path:
    """Write ``fleet.toml``, by which the folder is served from any place, by a `class_` that has all in one file."""
    table = ({"class": class_} if class_ else {}) | {"source": {"path": BACKBONE}}
    options = _options(Path(HEADS), [] if class_ else tasks, recipe.train.max_tokens)
    kinds = {task.name: task.served for task in tasks}
    path = out / SETTINGS
    with atomically(path) as part:
        part.write_text(toml_text.served_alone(recipe.name, table, options, kinds, command="train"), encoding="utf-8")
    return path
