"""What all models made of Hugging Face folders share: a head for each task, its folder, its options, its network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from producers.catalogue import Task
from producers.errors import ConfigurationError, InvalidInput
from workers.models import sources
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.networks import Network, Networks
from workers.models.model import Array, Model, ModelSpec, Prepared


class Head(Protocol):
    """What is asked of a task's head by the model as such."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def auto(self) -> str: ...
    def check(self) -> None: ...
    def finish(self, output: Array, params: Any, aside: Any) -> Any: ...


H = TypeVar("H", bound=Head)
_Read = TypeVar("_Read")


class FolderModel(Model, Generic[H]):
    """A model that writes `_head`, and of `Model` what its inputs are: `prepare`, `collate`, `forward`."""

    backends = ("torch",)

    #: The names of the model's options; others are refused, as they are most likely misspelt.
    OPTIONS: ClassVar[tuple[str, ...]]

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._loaded: Networks | None = None
        self._device = "cpu"

    @abstractmethod
    def _head(self, task: Task, checkpoint: Checkpoint) -> H:
        """Return a task's head, whose network and labels are those of `checkpoint`."""

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        for head in self.heads.values():
            head.check()  # a wrong setting is found when the worker starts
        if self.spec.backend.compiled:
            raise ConfigurationError(
                f"{self.where}.compile: is not for models without a class of their own; leave it out"
            )
        parts = [self.spec.revision, *(sources.folder_revision(folder) for folder in self._own_folders.values())]
        return "+".join(parts if self.spec.backend.is_reference else [*parts, str(self.spec.backend)])

    @cached_property
    def heads(self) -> Mapping[str, H]:
        if unknown := sorted(set(self.spec.options) - set(self.OPTIONS)):
            known = ", ".join(self.OPTIONS)
            raise ConfigurationError(f"{self.where}.options.{unknown[0]}: not an option; these are: {known}")
        return {
            name: self._head(task, Checkpoint(self._own_folders.get(name, self.spec.folder), self.where))
            for name, task in self.spec.tasks.items()
        }

    def finish(self, task: Task, output: Array, params: msgspec.Struct) -> Any:
        """For kinds whose answers need nothing of the item but its output; the others need `finish_item`."""
        return self.heads[task.name].finish(output, params, None)

    def finish_item(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        return self.heads[task.name].finish(output, params, prepared.aside[task.name])

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model's own folder."""
        return Checkpoint(self.spec.folder, self.where)

    @property
    def _own_folders(self) -> dict[str, Path]:
        given = self.spec.options.get("heads", {})
        if unknown := sorted(set(given) - set(self.spec.tasks)):
            raise ConfigurationError(f"{self.where}.options.heads.{unknown[0]}: the model has no such task")
        return {task: Path(folder).expanduser() for task, folder in given.items()}

    @property
    def where(self) -> str:
        return f"models.{self.spec.name}"

    # --- in the device process ---

    @property
    def networks(self) -> Networks:
        assert self._loaded is not None, "loaded before the first batch"
        return self._loaded

    @property
    def passes(self) -> int:
        """How often the backbone ran: once a batch, or more often where its rows are of very different sizes."""
        return self.networks.passes

    def load(self, device: str) -> None:
        self._device = device
        self._loaded = Networks(
            {name: Network(head.checkpoint.folder, head.auto) for name, head in self.heads.items()},
            where=self.where,
            device=device,
            precision=self.spec.backend.precision,
        )
        self._loaded.load()


def read_for_each(
    params: Mapping[str, msgspec.Struct], read: Callable[[str, Any], _Read]
) -> tuple[dict[str, _Read], dict[str, InvalidInput]]:
    """Return what each task makes of an input, and the refusals of those that it is of no use to.

    Raises the first refusal if all refuse it.
    """
    found: dict[str, _Read] = {}
    refused: dict[str, InvalidInput] = {}
    for task, chosen in params.items():
        try:
            found[task] = read(task, chosen)
        except InvalidInput as error:
            refused[task] = error
    if not found:
        raise next(iter(refused.values()))
    return found, refused
