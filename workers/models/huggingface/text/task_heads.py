"""Heads that `argosy train` has made: a task's own attention over the tokens of a backbone that all tasks share.

A head is a folder with ``config.json``, as of transformers, and ``head.safetensors``, the weights of a `TaskAttention`.
The backbone lies in the model's main folder alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers.wire.errors import ConfigurationError
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_networks import BACKBONE
from workers.models.huggingface.text.label_heads import Classification

if TYPE_CHECKING:
    import torch

    from workers.models.huggingface.text.task_attention import TaskAttention

WEIGHTS = "head.safetensors"

#: The table in ``config.json`` of a head's own settings: `fusion` names the tasks that it sees.
SETTINGS = "task_head"


@dataclass(frozen=True)
class TaskCheckpoint(Checkpoint):
    """The model's main folder with the labels of a head in `head`."""

    head: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return Checkpoint(self.head, self.where).config

    @property
    def fusion(self) -> tuple[str, ...]:
        """The tasks whose scores the head sees."""
        return tuple(self.config[SETTINGS].get("fusion", ()))

    def check_weights(self) -> None:
        super().check_weights()
        if not (self.head / WEIGHTS).is_file():
            raise ConfigurationError(f"{self.where}: {self.head} has no {WEIGHTS}; train it again (argosy train)")


def is_task_head(folder: Path) -> bool:
    """Return whether a folder has a head of `argosy train` that pools by attention."""
    return SETTINGS in Checkpoint(folder, "").read_if_there("config.json")


class PooledClassification(Classification):
    """Labels with scores, by the task's own attention."""

    auto = BACKBONE
    checkpoint: TaskCheckpoint

    def check(self) -> None:
        super().check()
        for other in self.checkpoint.fusion:
            if other not in self.options.heads:
                problem = f"{self.checkpoint.head} sees the scores of the task {other!r}, which has no folder there"
                raise ConfigurationError(f"{self.checkpoint.where}.options.heads: {problem}; add {other!r}")

    @cached_property
    def modules(self) -> Mapping[str, TaskAttention]:
        """The task's own network, and those that it sees, by task."""
        folders = {other: Path(self.options.heads[other]) for other in self.checkpoint.fusion}
        return {name: _load(folder) for name, folder in {self.task.name: self.checkpoint.head, **folders}.items()}

    def adapt(self, network: Any) -> None:
        """Load the head, so that a missing file is found before the first pass."""
        self.modules  # noqa: B018

    def compute(self, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tokens, mask = output.last_hidden_state.float(), inputs["attention_mask"].bool()
        found = {name: module.to(tokens.device).attend(tokens, mask) for name, module in self.modules.items()}
        own = self.modules[self.task.name]
        # detached: in a training, a task must not bend the scores of another
        scores: torch.Tensor = own(found[self.task.name], [found[other].detach() for other in self.checkpoint.fusion])
        return scores


def _load(folder: Path) -> TaskAttention:
    from safetensors.torch import load_file

    from workers.models.huggingface.text.task_attention import TaskAttention

    tensors = load_file(folder / WEIGHTS)
    module = TaskAttention.of_shape(tensors)
    module.load_state_dict(tensors)
    return module.eval()
