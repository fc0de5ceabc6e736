"""Teach a student to answer like its teacher: by the teacher's logits, its hidden states, and the rows' labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from typing import Any, Literal, TypeAlias

import msgspec
import torch
from torch import nn
from torch.nn import functional

from workers.training.compressing.lessons import Lessons, TokenizedRows, wrong
from workers.training.compressing.task_networks import TaskNetworks

#: Called after each step with its number, the number of all steps, and the loss.
Watch: TypeAlias = Callable[[int, int, float], None]

#: The memory for the teacher's hidden states.
MOST_KEPT_BYTES = 2**30

#: The share of all steps in which the rate of learning rises; it falls in the others.
_WARM_UP = 0.1


class Teaching(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a training.

    `features` weighs the hidden states, `labels` the rows' own labels; the teacher's answers weigh 1. In bf16, passes
    are rounded and weights stay in fp32.
    """

    epochs: float = 3.0
    rate: float = 1e-4
    rows: int = 32
    temperature: float = 2.0
    features: float = 1.0
    labels: float = 0.5
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"


def teach(
    student: TaskNetworks, teacher: TaskNetworks, rows: TokenizedRows, settings: Teaching, watch: Watch | None = None
) -> None:
    """Train a student. The teacher's weights stay as they are."""
    torch.manual_seed(settings.seed)
    lesson = _Lesson(student, teacher, rows, settings)
    trained = [*student.parameters(), *lesson.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=0.01)
    batches = list(rows.batches(settings.rows, settings.seed))
    steps = max(1, math.ceil(settings.epochs * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    student.train()
    for step in range(steps):
        if step % len(batches) == 0:
            order = Random(settings.seed + step).sample(range(len(batches)), len(batches))  # noqa: S311 - repeatable
        number = order[step % len(batches)]
        loss = lesson(number, batches[number])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if watch:
            watch(step + 1, steps, float(loss.detach()))
    student.eval()


def _rate(step: int, steps: int) -> float:
    """Return the share of the rate of learning: it rises, then falls to 0 in a line."""
    rising = max(1, round(_WARM_UP * steps))
    return (step + 1) / rising if step < rising else max(0.0, (steps - step) / max(1, steps - rising))


class _Lesson(nn.Module):
    """The loss of a student on a batch. It has a projection of its own if hidden states have another width.

    Hidden states are compared layer by layer by their squared difference (Jiao et al., 2020); the student's layers are
    spread evenly over the teacher's. The teacher's part of a batch is computed once, and kept while memory is left.
    """

    def __init__(self, student: TaskNetworks, teacher: TaskNetworks, rows: TokenizedRows, settings: Teaching) -> None:
        super().__init__()
        self._pair = (student, teacher)  # in a tuple: their parameters are not this module's
        self._rows, self._settings = rows, settings
        own, theirs = student.backbone.config, teacher.backbone.config
        count = own.num_hidden_layers
        self._like = [round(n * theirs.num_hidden_layers / count) for n in range(count + 1)]
        same = own.hidden_size == theirs.hidden_size
        self.projection = nn.Identity() if same else nn.Linear(own.hidden_size, theirs.hidden_size)
        self._known: dict[int, tuple[dict[str, torch.Tensor], list[torch.Tensor]]] = {}
        self._left_bytes = MOST_KEPT_BYTES

    def forward(self, number: int, lessons: Lessons) -> torch.Tensor:
        expected, their_states = self._expected(number, lessons)
        with self._rounding():
            found, states = self._pair[0](lessons.inputs)
        mask = lessons.mask
        parts = [
            functional.mse_loss(self.projection(own[mask].float()), other[mask].float())
            for own, other in zip(states, their_states, strict=True)
        ]
        loss = self._settings.features * torch.stack(parts).mean()
        for task, kind in self._rows.kinds.items():
            scores = found[task].float()
            loss = loss + self._rows.unlike(task, scores, expected[task], lessons, self._settings.temperature)
            loss = loss + self._settings.labels * wrong(scores, lessons, task, kind)
        return loss

    def _rounding(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._settings.precision == "bf16")

    def _expected(self, number: int, lessons: Lessons) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """Return the teacher's raw scores of a batch, and its hidden states in bf16."""
        if number in self._known:
            return self._known[number]
        with torch.no_grad(), self._rounding():
            scores, states = self._pair[1](lessons.inputs)
        found = {task: own.float() for task, own in scores.items()}, [states[n].bfloat16() for n in self._like]
        self._left_bytes -= sum(state.nbytes for state in found[1])
        if self._left_bytes > 0:
            self._known[number] = found
        return found
