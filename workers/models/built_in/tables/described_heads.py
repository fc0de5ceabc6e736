"""The heads of a model of rows or series: each task's labels, its function from values to scores, and its matrix.

A file of one head without a name answers all tasks alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError
from producers.wire.fleet_file import known
from workers.models.huggingface.text.label_heads import FUNCTIONS
from workers.models.huggingface.text_head import best_labels
from workers.models.interface.model import Array, ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

#: The prefix of a head's tensors, before the task's name.
HEAD = "heads/"

#: The kind whose answer is a number.
_NUMBER = "regression"

#: The name of a head that answers all tasks.
EVERY = ""


class HeadDescription(msgspec.Struct, frozen=True):
    """A task's labels and function. With the function ``none`` the answer is a number, and the only label its name."""

    labels: tuple[str, ...]
    function: Literal["softmax", "sigmoid", "none"] = "softmax"


Heads = dict[str, HeadDescription]


def of(task: str, heads: Mapping[str, HeadDescription]) -> HeadDescription:
    """Return a task's head."""
    return heads[EVERY] if EVERY in heads else heads[task]


def check(spec: ModelSpec, heads: Mapping[str, HeadDescription]) -> None:
    """Raise ConfigurationError for a task without a head, or with a head of another kind."""
    for name, task in spec.tasks.items():
        where = f"models.{spec.name}.tasks.{name}"
        if EVERY not in heads and name not in heads:
            raise ConfigurationError(f"{where}: the model was not trained for it; {known(name, heads)}")
        if (task.kind.name == _NUMBER) != (of(name, heads).function == "none"):
            found = "numbers" if of(name, heads).function == "none" else "labels"
            raise ConfigurationError(f"{where}: {task.kind.name} does not fit: the model was trained for {found}")


def answer(task: Task, heads: Mapping[str, HeadDescription], values: Array, top_k: int | None) -> Any:
    """Return the answer for a head's values `(labels,)`: the best labels, or a number."""
    head = of(task.name, heads)
    if task.kind.name == _NUMBER:
        return float(values[0])
    return best_labels(head.labels, FUNCTIONS[head.function](values), top_k)


def load(tensors: Mapping[str, torch.Tensor], heads: Mapping[str, HeadDescription]) -> dict[str, nn.Linear]:
    """Return the matrix of each head."""
    from torch import nn

    found = {}
    for name in heads:
        weight, bias = (tensors[f"{HEAD}{name}.{part}"] for part in ("weight", "bias"))
        found[name] = nn.Linear(weight.shape[1], weight.shape[0])
        found[name].load_state_dict({"weight": weight, "bias": bias})
    return found


def run(heads: Mapping[str, nn.Linear], features: torch.Tensor, wanted: Mapping[str, Array]) -> dict[str, Array]:
    """Return the values of each wanted task's rows, from the features of all rows `(rows, width)`."""
    import torch

    found = {}
    for task, rows in wanted.items():
        own = features.index_select(0, torch.as_tensor(rows, device=features.device))
        values: Array = (heads[EVERY] if EVERY in heads else heads[task])(own).cpu().numpy()
        found[task] = values
    return found
