"""Stages: each process has some successive layers, and micro-batches go from one to the next (torch's pipelining).

The first stage has the embeddings; the last one has the heads and the loss. Every process makes the batches, of which
a stage reads masks or targets; between stages go the layers' outputs and their gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional

from workers.training.kinds.labelled_kind import IGNORED
from workers.training.kinds.shared_network import INPUT
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Recipe
from workers.training.loop.schedule import Place
from workers.training.loop.training_subject import Examples
from workers.training.splits.layouts import layout_of
from workers.training.splits.splitting import Batch, Splitting


class PipelineStages(Splitting):
    """A step has as many micro-batches as stages, or a multiple: one forward, one backward (Narayanan et al., 2019)."""

    def __init__(self, network: Any, process: Process, recipe: Recipe) -> None:
        super().__init__(network, process, recipe)
        self.draws = process.rank
        self.micro_batches = process.count
        self.is_last = process.rank == process.count - 1
        self._tasks = len(network.tasks)
        config = network.encoder.backbone.config
        self._width, self._pad = config.hidden_size, getattr(config, "pad_token_id", None) or 0
        self._received = Received(self._shape, process)
        keep_own(network, self._received, process)
        self._part = _Part(self)
        self._schedules: dict[tuple[int, ...], Schedule1F1B] = {}

    def learn(self, batches: Sequence[Batch], scale: float) -> torch.Tensor:
        batches = _of_one_shape(self.counted(batches), self._pad)
        self._part.begin(batches, scale)
        schedule = self._schedule(self._shape(_inputs(batches[0]).values()), len(batches))
        # a micro-batch is known by its number: torch would cut tensors by rows, of which tasks have different ones
        numbers = torch.arange(len(batches), device=self.process.device)
        if self.process.is_first:
            schedule.step(numbers, return_outputs=False)
        else:
            schedule.step(numbers=numbers, target=numbers if self.is_last else None, return_outputs=False)
        return self.summed(self._part.tally(self._tasks))

    def summed(self, tallies: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(tallies)
        return tallies

    def squared_norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        squares = super().squared_norm(gradients)
        distributed.all_reduce(squares)
        return squares

    def judged(self, unseen: Examples, batches: Sequence[Sequence[Place]]) -> list[Any]:
        self._received.tensor = None  # the embeddings' place receives from the stage before
        found: list[Any] = [None]
        if self.is_last:
            found = [[unseen.judged(self.network, batch) for batch in batches]]
        else:
            for batch in batches:
                output = self.network.encoder.hidden(_inputs(unseen.batch(batch))).float()
                distributed.send(output.contiguous(), self.process.rank + 1)
        distributed.broadcast_object_list(found, src=self.process.count - 1)
        return list(found[0])

    def _shape(self, inputs: Any) -> tuple[int, int, int]:
        """Return the shape of a layer's output for a backbone's inputs."""
        first = next(own for own in inputs if isinstance(own, torch.Tensor))
        return len(first), first.shape[1], self._width

    def _schedule(self, shape: tuple[int, ...], count: int) -> Schedule1F1B:
        """Return the schedule for batches of a shape; torch's stages have buffers of fixed shapes."""
        if (found := self._schedules.get((*shape, count))) is not None:
            return found
        device = torch.device(self.process.device)
        number = torch.zeros(1, dtype=torch.int64, device=device)
        received = number if self.process.is_first else torch.empty(shape, device=device, requires_grad=True)
        given = torch.empty(1 if self.is_last else shape, device=device, requires_grad=True)
        stage = PipelineStage(
            self._part, self.process.rank, self.process.count, device, input_args=received, output_args=given
        )
        found = Schedule1F1B(stage, count, loss_fn=lambda loss, _: loss.sum(), scale_grads=False)
        self._schedules[(*shape, count)] = found
        return found


class _Part(nn.Module):
    """A stage as torch's pipelining calls it: with a micro-batch's number, and the output of the stage before."""

    def __init__(self, stages: PipelineStages) -> None:
        super().__init__()
        self.network = stages.network
        vars(self)["stages"] = stages
        self.begin([], 1.0)

    def begin(self, batches: Sequence[Batch], scale: float) -> None:
        self.batches, self.scale = batches, scale
        self.tallies: list[torch.Tensor] = []

    def forward(self, received: torch.Tensor, numbers: torch.Tensor | None = None) -> torch.Tensor:
        stages: PipelineStages = vars(self)["stages"]
        stages._received.tensor = received  # noqa: SLF001 - of the same file
        batch = self.batches[int(received if numbers is None else numbers)]
        with stages.autocast():
            if not stages.is_last:
                output: torch.Tensor = self.network.encoder.hidden(_inputs(batch))
                return output.float()
            loss, tally = self.network(**batch)
        self.tallies.append(tally)
        scaled: torch.Tensor = (loss * self.scale).reshape(1)
        return scaled

    def tally(self, tasks: int) -> torch.Tensor:
        """Return the sum of the micro-batches' tallies, of which only the last stage has some."""
        if self.tallies:
            return torch.stack(self.tallies).sum(0)
        return torch.zeros(tasks, 2, device=next(self.network.parameters()).device)


class Received(nn.Module):
    """The output of the stage before, in the place of the embeddings."""

    def __init__(self, shape: Any, process: Process) -> None:
        super().__init__()
        self._shape, self._process = shape, process
        self.tensor: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.tensor is not None:
            return self.tensor
        received = torch.empty(self._shape((*args, *kwargs.values())), device=self._process.device)
        distributed.recv(received, self._process.rank - 1)
        return received


class _Skipped(nn.Module):
    """A layer of another stage."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden


def keep_own(network: Any, received: Received, process: Process) -> None:
    """Take the parts of other stages away; names stay as in the whole network."""
    backbone = network.encoder.backbone
    layout = layout_of(network.encoder)
    layers = backbone.get_submodule(layout.stacks[0])
    bounds = [round(len(layers) * number / process.count) for number in range(process.count + 1)]
    for number in range(len(layers)):
        if not bounds[process.rank] <= number < bounds[process.rank + 1]:
            layers[number] = _Skipped()
    if not process.is_first:
        backbone.set_submodule(layout.embeddings, received)
    if process.rank < process.count - 1:
        backbone.pooler = None
        for name in layout.after:
            backbone.set_submodule(name, nn.Identity())
        network.heads = nn.ModuleList()
        network.weights = None


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {name.removeprefix(INPUT): tensor for name, tensor in batch.items() if name.startswith(INPUT)}


def _of_one_shape(batches: Sequence[Batch], pad: int) -> list[Batch]:
    """Return micro-batches with as many inputs of equal lengths.

    An added input repeats the first one, since a sequence of padding alone has no softmax, and no task refers to it.
    """
    inputs = [_inputs(batch) for batch in batches]
    first = [next(iter(own.values())) for own in inputs]
    count, longest = max(len(own) for own in first), max(own.shape[1] for own in first)
    found = []
    for batch in batches:
        own = copy.copy(batch)
        for name, tensor in batch.items():
            if name.startswith(INPUT):
                if tensor.ndim == 2:
                    value = {f"{INPUT}input_ids": pad, f"{INPUT}labels": IGNORED}.get(name, 0)
                    tensor = functional.pad(tensor, (0, longest - tensor.shape[1]), value=value)  # noqa: PLW2901
                own[name] = torch.cat([tensor, tensor[:1].expand(count - len(tensor), *tensor.shape[1:])])
        found.append(own)
    return found
