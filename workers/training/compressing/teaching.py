"""Teach a student to answer like its teacher: by the teacher's logits, its hidden states, and the rows' labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec
import torch
from torch import nn
from torch.nn import functional

from workers.training.compressing.lessons import Lessons, TokenizedRows, unlike, wrong
from workers.training.compressing.task_networks import TaskNetworks

#: Called after each step with its number, the number of all steps, and the loss.
Watch: TypeAlias = Callable[[int, int, float], None]

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
    features = _Features(student, teacher)
    trained = [*student.parameters(), *features.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=0.01)
    steps = max(1, math.ceil(settings.epochs * math.ceil(len(rows) / settings.rows)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    student.train()
    step = 0
    while step < steps:
        for lessons in rows.batches(settings.rows, settings.seed + step):
            loss = _loss(student, teacher, features, rows, lessons, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if watch:
                watch(step, steps, float(loss.detach()))
            if step == steps:
                break
    student.eval()


def _rate(step: int, steps: int) -> float:
    """Return the share of the rate of learning: it rises, then falls to 0 in a line."""
    rising = max(1, round(_WARM_UP * steps))
    return (step + 1) / rising if step < rising else max(0.0, (steps - step) / max(1, steps - rising))


def _loss(
    student: TaskNetworks,
    teacher: TaskNetworks,
    features: _Features,
    rows: TokenizedRows,
    lessons: Lessons,
    settings: Teaching,
) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
        with torch.no_grad():
            expected, their_states = teacher(lessons.inputs)
        found, states = student(lessons.inputs)
        # losses are computed in fp32
        expected, found = ({task: own.float() for task, own in scores.items()} for scores in (expected, found))
    loss: torch.Tensor = settings.features * features(states, their_states, lessons.mask)
    for task, form in rows.forms.items():
        loss = loss + unlike(found[task], expected[task], lessons, task, form, settings.temperature)
        loss = loss + settings.labels * wrong(found[task], lessons, task, rows.kinds[task])
    return loss


class _Features(nn.Module):
    """The mean squared difference of the hidden states, layer by layer (Jiao et al., 2020).

    The student's layers are spread evenly over the teacher's. States of another width are first projected.
    """

    def __init__(self, student: TaskNetworks, teacher: TaskNetworks) -> None:
        super().__init__()
        own, theirs = student.backbone.config, teacher.backbone.config
        count = own.num_hidden_layers
        self._like = [round(n * theirs.num_hidden_layers / count) for n in range(count + 1)]
        same = own.hidden_size == theirs.hidden_size
        self.projection = nn.Identity() if same else nn.Linear(own.hidden_size, theirs.hidden_size)

    def forward(
        self, states: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...], mask: torch.Tensor
    ) -> torch.Tensor:
        parts = [
            functional.mse_loss(self.projection(own[mask].float()), theirs[place][mask].float())
            for own, place in zip(states, self._like, strict=True)
        ]
        return torch.stack(parts).mean()
