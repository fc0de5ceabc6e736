"""A training's state on disk, from which any number of processes continue (torch.distributed.checkpoint).

A checkpoint is a folder to which each process writes its part, as safetensors, never as a pickle. The file that names
the folder is replaced when all parts are there: a kill leaves the old checkpoint or the new one, whole.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from torch import distributed, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.optim import Optimizer

from producers.wire.atomic_files import write_json
from producers.wire.errors import ConfigurationError
from producers.wire.training.training_job import CHECKPOINT
from workers.training.loop.recipe import Recipe

FILE = CHECKPOINT
BEST = "best.json"

#: A file that older versions made, and that is not read any more.
_OLD = "checkpoint.safetensors"

_NETWORK, _OPTIMISER = "network/", "optimiser/"


class Progress(msgspec.Struct):
    """The progress of a training: steps done, the best evaluation and its step, and the evaluations since then.

    A training that was stopped before the evaluation of its last step `owes_evaluation`.
    """

    step: int = 0
    best: float = -1e9
    best_step: int = 0
    stale: int = 0
    owes_evaluation: bool = False


class Saved(msgspec.Struct, frozen=True):
    """A checkpoint: the folder of its tensors, the recipe that they are of, and the progress."""

    folder: str
    recipe: Recipe
    progress: Progress


class SavedBest(msgspec.Struct, frozen=True):
    """The folder of the best weights, and their step."""

    folder: str
    step: int


_Pointer = TypeVar("_Pointer", Saved, SavedBest)


def save(out: Path, recipe: Recipe, progress: Progress, network: nn.Module, optimiser: Optimizer) -> None:
    """Write a checkpoint. All processes must call this at the same time."""
    state = {f"{_NETWORK}{name}": tensor for name, tensor in learnt(network).items()}
    for name, parameter in network.named_parameters():
        own = optimiser.state.get(parameter, {})
        state |= {f"{_OPTIMISER}{name}/{key}": tensor for key, tensor in own.items()}
    _write(out, _folder(progress), state)
    tell(out, recipe, progress)


def tell(out: Path, recipe: Recipe, progress: Progress) -> None:
    """Note the progress beside the tensors of its step, which are there. All processes must call this together."""
    _point(out, FILE, Saved(_folder(progress), recipe, progress))


def _folder(progress: Progress) -> str:
    return f"checkpoint-{progress.step}"


def save_best(out: Path, step: int, network: nn.Module) -> None:
    """Write a network's weights as the best so far. All processes must call this at the same time."""
    folder = f"best-{step}"
    _write(out, folder, learnt(network))
    _point(out, BEST, SavedBest(folder, step))


def load(out: Path, recipe: Recipe, network: nn.Module, optimiser: Optimizer) -> Progress:
    """Load network and optimiser from a checkpoint, if there is one. Raises ConfigurationError for another recipe.

    The error kept by a compression is not saved: a compressed training that was stopped ends a little differently.
    """
    if (saved := of_recipe(out, recipe)) is None:
        return Progress()
    folder = out / saved.folder
    state = {f"{_NETWORK}{name}": tensor for name, tensor in learnt(network).items()}
    parameters = {f"{_OPTIMISER}{name}/": parameter for name, parameter in network.named_parameters()}
    for name in HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata:
        prefix, _, key = name.rpartition("/")
        if (parameter := parameters.get(f"{prefix}/")) is not None:
            # AdamW keeps its step count on the CPU, and no state for parameters without gradient
            state[name] = torch.zeros(()) if key == "step" else torch.zeros_like(parameter.detach())
            optimiser.state[parameter][key] = state[name]
    _read(folder, state, together=distributed.is_initialized())
    return saved.progress


def of_recipe(out: Path, recipe: Recipe) -> Saved | None:
    """Return the checkpoint in a folder, if there is one. Raises ConfigurationError for one of another recipe."""
    saved = read(out)
    older = msgspec.structs.replace(recipe, subject=recipe.subject.partition(".")[0])  # as older versions wrote it
    if saved is not None and saved.recipe not in (recipe, older):
        problem = "was made by another recipe; go on with that one, or name another folder"
        raise ConfigurationError(f"{out / FILE}: {problem}")
    return saved


def read(out: Path) -> Saved | None:
    """Return the checkpoint in a folder, if there is one, without its tensors. Raises ConfigurationError."""
    if (out / _OLD).is_file():
        raise ConfigurationError(f"{out / _OLD}: was made by an older version; name another folder, or remove it")
    return _pointer(out / FILE, Saved) if (out / FILE).is_file() else None


def load_best(out: Path, network: nn.Module) -> None:
    """Load the best weights of a training into its whole network, in this process alone.

    Frozen parameters stay as they were built.
    """
    _read(out / _pointer(out / BEST, SavedBest).folder, learnt(network), together=False)


def best_step(out: Path) -> int:
    """Return the step of a training's best weights."""
    return _pointer(out / BEST, SavedBest).step


def learnt(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a network that a training changes: all but its frozen parameters.

    A parameter in several places, such as tied embeddings, has its first name only.
    """
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    others = {name for name, _ in network.named_parameters(remove_duplicate=False)} - learning
    return {name: tensor for name, tensor in network.state_dict().items() if name not in others}


def _write(out: Path, folder: str, state: dict[str, torch.Tensor]) -> None:
    if _is_first():
        shutil.rmtree(out / folder, ignore_errors=True)  # parts that a killed training has left
    _wait()
    with _quiet():
        writer = HuggingFaceStorageWriter(str(out / folder), save_distributed=True)
        state_dict_saver.save(state, storage_writer=writer, no_dist=not distributed.is_initialized())


def _read(folder: Path, state: dict[str, torch.Tensor], *, together: bool) -> None:
    with _quiet():
        reader = HuggingFaceStorageReader(str(folder))
        state_dict_loader.load(state, storage_reader=reader, no_dist=not together)


def _point(out: Path, name: str, pointer: Saved | SavedBest) -> None:
    """Name a folder that is whole, and remove older ones."""
    if _is_first():
        write_json(out / name, pointer, durable=True)
        kind, _, _ = pointer.folder.partition("-")
        for old in out.glob(f"{kind}-*"):
            if old.name != pointer.folder:
                shutil.rmtree(old)
    _wait()


def _pointer(path: Path, kind: type[_Pointer]) -> _Pointer:
    return msgspec.json.decode(path.read_bytes(), type=kind)


def _is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def _wait() -> None:
    if distributed.is_initialized():
        distributed.barrier()


class _quiet(warnings.catch_warnings):  # noqa: N801 - a context manager of one line
    """Torch warns of a single process, which is right here."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
