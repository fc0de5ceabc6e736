"""The explanations on a device: each step is a forward and backward pass over points of several lines.

The cost of its points limits a step to about the time of a micro-batch, so other work does not wait longer for the
device. Points of different items, tasks, labels and lengths share a pass.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from workers.models.explaining.explanation_request import Answer, Carried, ExplanationRequest, arrays
from workers.models.explaining.gradients import quadrature
from workers.models.explaining.subject import IntegrationPath, Points, Subject
from workers.models.interface.model import Array, Prepared
from workers.models.interface.stepwise import StepResult

if TYPE_CHECKING:
    import torch

#: In every `_PATIENCE` steps, the last starts with the request that has waited longest, whatever the others' urgency.
_PATIENCE = 8


@dataclass(slots=True, eq=False)
class RunningExplanation:
    """A request and its progress: `taken` steps, and steps `waited` since the last."""

    key: Hashable
    task: str
    request: ExplanationRequest
    urgency: int
    number: int
    taken: int = 0
    waited: int = 0
    forward_s: float = 0.0
    output: Array | None = None
    target: int = 0
    line: IntegrationPath | None = None
    done: int = 0
    sums: Any = None
    ends: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.request.steps + 2 - self.done


class ExplainingEngine:
    """All explanations of a model. `step_cost` limits the cost of a step's points. Not thread-safe."""

    def __init__(self, subject: Subject[Any], *, step_cost: int) -> None:
        self._subject = subject
        self._step_cost = step_cost
        self._asked: dict[Hashable, RunningExplanation] = {}
        self._number = 0
        self._steps = 0

    def __len__(self) -> int:
        return len(self._asked)

    def join(self, key: Hashable, task: str, request: ExplanationRequest, *, urgency: int) -> None:
        self._number += 1
        self._asked[key] = RunningExplanation(key, task, request, urgency, self._number)

    def leave(self, key: Hashable) -> None:
        self._asked.pop(key, None)

    def clear(self) -> None:
        self._asked.clear()

    def step(self) -> list[StepResult]:
        """Compute the model's answers of new requests; if there are none, take a step of the explanations."""
        started = time.perf_counter()
        fresh = [one for one in self._asked.values() if one.output is None]
        inside = self._answered(fresh) if fresh else self._moved(list(self._asked.values()))
        took_s = time.perf_counter() - started
        for one in inside:
            one.forward_s += took_s / len(inside)
        return [self._left(one) for one in inside if not one.request.steps or (one.line and not one.left)]

    # --- as the model itself ---

    def _answered(self, fresh: Sequence[RunningExplanation]) -> list[RunningExplanation]:
        chosen: list[RunningExplanation] = []
        for one in sorted(fresh, key=lambda one: (one.urgency, one.number)):
            if chosen and sum(own.request.size for own in (*chosen, one)) > self._step_cost:
                break
            chosen.append(one)
        model = self._subject.model
        rows = [Prepared(arrays(one.request.row), one.request.size, b"") for one in chosen]
        wanted: dict[str, list[int]] = {}
        for row, one in enumerate(chosen):
            wanted.setdefault(one.task, []).append(row)
        outputs = model.forward(model.collate(rows), {task: np.array(own) for task, own in wanted.items()})
        for row, one in enumerate(chosen):
            one.output = np.array(outputs[one.task][wanted[one.task].index(row)])
            if one.request.steps:
                self._begin(one, one.output)
        return chosen

    def _begin(self, one: RunningExplanation, output: Array) -> None:
        request = one.request
        one.target = int(output.argmax()) if request.target is None else request.target
        one.line = self._subject.line(one.task, arrays(request.row), arrays(request.about))

    # --- on the line ---

    def _moved(self, asked: list[RunningExplanation]) -> list[RunningExplanation]:
        import torch

        self._steps += 1
        chosen = self._chosen(asked)
        with torch.enable_grad():
            points = [self._points(one, count) for one, count in chosen]
            odds = self._subject.log_odds(points)
            slopes = torch.autograd.grad(odds.sum(), [own.values for own in points])
        place = 0
        for (one, count), slope in zip(chosen, slopes, strict=True):
            self._add(one, slope, odds[place : place + count].tolist())
            place += count
        inside = [one for one, _ in chosen]
        for one in asked:
            one.waited += 1
        for one in inside:
            one.taken, one.waited = one.taken + 1, 0
        return inside

    def _chosen(self, asked: list[RunningExplanation]) -> list[tuple[RunningExplanation, int]]:
        """Return the next step's requests with their numbers of points: by urgency, then by fewest steps taken."""
        order = sorted(asked, key=lambda one: (one.urgency, one.taken, one.number))
        if self._steps % _PATIENCE == 0:
            patient = max(asked, key=lambda one: (one.waited, -one.number))
            order = [patient, *(one for one in order if one is not patient)]
        found: list[tuple[RunningExplanation, int]] = []
        widest = points = 0
        for one in order:
            line = _line(one)
            if any(not self._subject.along(_line(other), line) for other, _ in found):
                continue
            widest = max(widest, self._subject.cost(line))
            count = min(one.left, self._step_cost // widest - points)
            if count < 1 and found:
                break
            found.append((one, max(1, count)))
            points += max(1, count)
        return found

    def _points(self, one: RunningExplanation, count: int) -> Points:
        import torch

        line = _line(one)
        places = quadrature(one.request.steps)[0][one.done : one.done + count]
        along = torch.tensor(places, device=line.x.device, dtype=line.x.dtype).view(-1, *[1] * line.x.ndim)
        values = (line.baseline + along * (line.x - line.baseline)).requires_grad_()
        return Points(line, one.target, values)

    def _add(self, one: RunningExplanation, slopes: torch.Tensor, odds: Sequence[float]) -> None:
        import torch

        weights = quadrature(one.request.steps)[1][one.done : one.done + len(odds)]
        weighed = torch.einsum("p,p...->...", torch.tensor(weights, device=slopes.device, dtype=slopes.dtype), slopes)
        one.sums = weighed if one.sums is None else one.sums + weighed
        one.ends += [value for n, value in enumerate(odds) if one.done + n >= one.request.steps]
        one.done += len(odds)

    # --- the end ---

    def _left(self, one: RunningExplanation) -> StepResult:
        del self._asked[one.key]
        assert one.output is not None, "an explanation begins after the answer"
        answer = Answer(Carried.of(one.output))
        if one.request.steps:
            line = _line(one)
            contributions = self._subject.condensed(one.sums * (line.x - line.baseline)).float().cpu().numpy()
            base, value = one.ends
            answer = Answer(answer.output, one.target, Carried.of(contributions), value, base)
        return StepResult(one.key, output=msgspec.to_builtins(answer, builtin_types=(bytes,)), forward_s=one.forward_s)


def _line(one: RunningExplanation) -> IntegrationPath:
    assert one.line is not None, "an explanation begins after the answer"
    return one.line
