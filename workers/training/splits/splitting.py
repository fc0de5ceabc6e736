"""The interface of a split: one process's part of the network, and its share of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from workers.training.kinds.shared_network import STEP
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Recipe
from workers.training.loop.schedule import Place
from workers.training.loop.training_subject import Examples
from workers.training.splits.compression import Traffic

Batch = dict[str, torch.Tensor]


class Splitting:
    """The whole network in one process. Subclasses split it among several."""

    def __init__(self, network: Any, process: Process, recipe: Recipe) -> None:
        #: The part of the network that is here; its parameters keep the names that they have in the whole.
        self.network = network
        #: The module whose call is a pass, for example with exchanged gradients.
        self.replica = network
        self.process, self.recipe = process, recipe
        self.traffic = Traffic()
        #: The rank among the processes that share out a step's rows, and their number.
        self.rank, self.sharers = 0, 1
        #: The rank among the processes that draw different random numbers, for dropout.
        self.draws = 0
        #: The least number of micro-batches in a step.
        self.micro_batches = 1

    def learn(self, batches: Sequence[Batch], scale: float) -> torch.Tensor:
        """Compute the gradients of a step's micro-batches; return the tallies of all processes' rows.

        Micro-batches sum their gradients here, which are exchanged with those of the last. The loss is multiplied by
        `scale`.
        """
        tallies, batches = [], self.counted(batches)
        for number, batch in enumerate(batches, start=1):
            with self.exchanging(last=number == len(batches)):
                with self.autocast():
                    loss, tally = self.replica(**batch)
                # several processes take the mean of their gradients
                torch.autograd.backward(loss * (scale * self.sharers))
            tallies.append(tally)
        return self.summed(torch.stack(tallies).sum(0))

    def counted(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Give each micro-batch the examples and terms of the whole step, over which losses are averaged."""
        if not hasattr(self.network, "counted"):  # the loss of a row depends on nothing else
            return batches
        whole = torch.stack([self.network.counted(batch) for batch in batches]).sum(0)
        if self.sharers > 1:
            distributed.all_reduce(whole)
        return [{**batch, STEP: whole} for batch in batches]

    def exchanging(self, *, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def autocast(self) -> torch.autocast:
        kind = torch.device(self.process.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def summed(self, tallies: torch.Tensor) -> torch.Tensor:
        if self.sharers > 1:
            distributed.all_reduce(tallies)
        return tallies

    def clip(self, most_norm: float) -> None:
        """Scale the gradients of the whole network down to at most this norm."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        norm = float(self.squared_norm(gradients)) ** 0.5
        scale = most_norm / (norm + 1e-6)
        if scale < 1:
            for gradient in gradients:
                gradient.mul_(scale)

    def squared_norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the squared norm of the whole network's gradients, from those of its part here."""
        kinds = ([own for own in gradients if isinstance(own, DTensor) is cut] for cut in (False, True))
        norms = [torch.nn.utils.get_total_norm(own) for own in kinds if own]
        return torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).square().sum()

    def judged(self, unseen: Examples, batches: Sequence[Sequence[Place]]) -> list[Any]:
        """Return the judgements of all batches, which the processes share out."""
        # each process takes as many passes, in which some splits exchange weights; the last ones may be repeated
        own = [*batches[self.rank :: self.sharers]]
        more = -(-len(batches) // self.sharers) - len(own)
        found = [unseen.judged(self.evaluated, batch) for batch in own + [*batches[:1]] * more]
        return self._gathered(found[: len(own)])

    @property
    def evaluated(self) -> Any:
        """The network as evaluations call it."""
        return self.network

    def _gathered(self, own: list[Any]) -> list[Any]:
        if self.sharers == 1:
            return own
        found: list[list[Any]] = [[] for _ in range(self.sharers)]
        distributed.all_gather_object(found, own)
        return [judged for part in found for judged in part]
