"""The network of a training: one backbone, a head for each task, and the loss over rows with labels of any tasks.

A head is the worker's own: its transformers network, in which a replay takes the backbone's place, or its attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from workers.models.huggingface.network_calls import call, rows_of
from workers.models.huggingface.text_head import TextHead
from workers.training.kinds.labelled_kind import LabelledKind

#: The prefixes of a batch's tensors: the backbone's inputs; for each task the inputs of its examples, their targets,
#: and whether they count.
INPUT, OF, TO, COUNTS = "input/", "of/", "to/", "counts/"

#: The examples and the terms of each task's loss in the whole step, `(tasks, 2)`; without them, the batch is the step.
STEP = "step"


class Backbone(nn.Module):
    """The backbone that all tasks share. A frozen one has no dropout and no gradients."""

    #: Whether it is a model that writes, with its output layer.
    writes = False

    def __init__(self, backbone: Any, *, frozen: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.frozen = frozen

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return call(self.backbone, inputs)

    def hidden(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the output of the last layer that is here, `(inputs, tokens, width)`."""
        found: torch.Tensor = call(self.backbone, inputs).last_hidden_state
        return found


class TaskNetwork:
    """A task with the head of its worker and the module that learns in it, None for a head without weights."""

    def __init__(self, kind: LabelledKind, head: TextHead | None, module: nn.Module | None) -> None:
        self.kind, self.head, self.module = kind, head, module

    def values(self, features: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the head's values for the backbone's inputs, `(inputs, …)`, by the code of the worker."""
        assert self.head is not None
        if self.kind.head != "transformers":  # an attention has units
            return self.head.compute(features, inputs).float()
        module: Any = self.module
        getattr(module, module.base_model_prefix).output = features
        scale, shift = self.kind.units
        found = self.head.compute(call(module, inputs), inputs).float() * scale + shift
        if not self.head.by_token:
            return found
        # a softmax over tokens must not depend on the padding, and so on the other rows of the batch
        return found.masked_fill(~inputs["attention_mask"].bool().unsqueeze(-1), torch.finfo(found.dtype).min)


class SharedNetwork(nn.Module):
    """A backbone with its tasks. The weights of the losses are as in `workers.training.joint.joint_network`."""

    def __init__(
        self, encoder: Backbone, tasks: Sequence[TaskNetwork], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.tasks = tasks
        self.heads = nn.ModuleList([task.module or nn.Identity() for task in tasks])
        self.learns_weights = weights is None
        values = torch.tensor([0.0 if weights is None else weights[task.kind.name] for task in tasks])
        self.weights = nn.Parameter(values) if weights is None else nn.Buffer(values)

    def values(self, batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return each task's values for its examples, `(examples, width, …)`."""
        inputs = {name.removeprefix(INPUT): tensor for name, tensor in batch.items() if name.startswith(INPUT)}
        count = len(next(iter(inputs.values())))
        features = self.encoder(inputs)
        found = []
        for task in self.tasks:
            of = batch[f"{OF}{task.kind.name}"]
            rows = of.flatten()
            own = {name: tensor.index_select(0, rows) for name, tensor in inputs.items()}
            values = task.values(rows_of(features, rows, count), own)
            found.append(values.view(*of.shape, *values.shape[1:]))
        return found

    def counted(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the examples and the terms of each task's loss in a batch, `(tasks, 2)`."""
        found = []
        for task in self.tasks:
            counts = batch[f"{COUNTS}{task.kind.name}"]
            terms = task.kind.terms(batch[f"{TO}{task.kind.name}"])
            found.append(torch.stack([counts.sum(), (terms * counts).sum()]))
        return torch.stack(found)

    def forward(self, **batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of all weighed losses, and for each task its examples and its plain loss.

        A head without examples computes one that does not count: DDP waits for the gradient of every parameter.
        """
        losses, tallies = [], []
        step = batch[STEP] if STEP in batch else self.counted(batch)
        for number, (task, values) in enumerate(zip(self.tasks, self.values(batch), strict=True)):
            counts = batch[f"{COUNTS}{task.kind.name}"]
            # an example costs its share of the step's terms, so that a token counts the same in every process
            share = step[number, 0] / step[number, 1].clamp(min=1)
            loss = (task.kind.losses(values, batch[f"{TO}{task.kind.name}"]) * counts).sum() * share
            weight = self.weights[number]
            learnt = (-weight).exp() * loss + counts.sum() * weight / 2
            losses.append(learnt if self.learns_weights else weight * loss)
            tallies.append(torch.stack([counts.sum(), loss.detach()]))
        return torch.stack(losses).sum(), torch.stack(tallies)
