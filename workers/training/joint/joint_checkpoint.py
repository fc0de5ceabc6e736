"""A training's state on disk, written whole or not at all, from which a killed training continues."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from producers.wire.atomic_files import atomically
from producers.wire.errors import ConfigurationError
from workers.training.joint import layers
from workers.training.joint.recipe import Recipe

FILE = "checkpoint.safetensors"
BEST = "best.safetensors"


class Progress(msgspec.Struct):
    """The progress of a training: steps done, the best evaluation and its step, and the evaluations since then."""

    step: int = 0
    best: float = -1e9
    best_step: int = 0
    stale: int = 0


def tensors(network: nn.Module, optimiser: Optimizer) -> dict[str, torch.Tensor]:
    """Return the state of a training. Where layers are shared out, all processes must call this at the same time."""
    found = {f"network/{name}": tensor for name, tensor in learnt(network).items()}
    for name, parameter in network.named_parameters():
        state = optimiser.state.get(parameter, {})
        found |= {f"optimiser/{name}/{key}": layers.whole(tensor) for key, tensor in state.items()}
    return found


def learnt(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return whole the tensors of a network that a training changes: all but its frozen parameters."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: layers.whole(tensor) for name, tensor in network.state_dict().items() if name not in frozen}


def save(folder: Path, recipe: Recipe, progress: Progress, found: Mapping[str, torch.Tensor]) -> None:
    about = {"recipe": msgspec.json.encode(recipe).decode(), "progress": msgspec.json.encode(progress).decode()}
    write(found, folder / FILE, about)


def load(folder: Path, recipe: Recipe, network: nn.Module, optimiser: Optimizer) -> Progress:
    """Load network and optimiser from a checkpoint, if there is one. Raises ConfigurationError for another recipe.

    The error kept by a compression is not saved: a compressed training that was stopped ends a little differently.
    """
    path = folder / FILE
    if not path.is_file():
        return Progress()
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    if msgspec.json.decode(about["recipe"], type=Recipe) != recipe:
        raise ConfigurationError(f"{path}: was made by another recipe; go on with that one, or name another folder")
    found = load_file(path)
    own = network.state_dict()
    kept = {name.removeprefix("network/"): tensor for name, tensor in found.items() if name.startswith("network/")}
    network.load_state_dict({name: layers.part(tensor, own[name]) for name, tensor in kept.items()}, strict=False)
    for name, parameter in network.named_parameters():
        prefix = f"optimiser/{name}/"
        state = {key.removeprefix(prefix): tensor for key, tensor in found.items() if key.startswith(prefix)}
        # AdamW keeps its step count on the CPU, and no state for parameters without gradient
        optimiser.state[parameter] = {
            key: tensor if key == "step" else layers.part(tensor, parameter) for key, tensor in state.items()
        }
    return msgspec.json.decode(about["progress"], type=Progress)


def load_best(folder: Path, network: nn.Module) -> None:
    """Load the best weights of a training into its network, as it was built."""
    network.load_state_dict(load_file(folder / BEST), strict=False)  # frozen parameters are as they were built


def best_step(folder: Path) -> int:
    """Return the step of a training's best weights."""
    with safe_open(folder / BEST, framework="pt") as file:
        return int(file.metadata()["step"])


def write(found: Mapping[str, torch.Tensor], path: Path, about: dict[str, str]) -> None:
    """Write a file atomically: a kill leaves the old file or the new one, whole."""
    with atomically(path, durable=True) as part:
        save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, part, about)
