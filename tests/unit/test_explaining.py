"""Integrated gradients where the right answer can be written down, and who is in which step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from producers.wire.kinds.explanation import Explanation
from workers.models.explaining.explaining_engine import ExplainingEngine
from workers.models.explaining.explanation_request import Answer, Carried, ExplanationRequest
from workers.models.explaining.gradients import margin, quadrature
from workers.models.explaining.subject import Attribution, IntegrationPath, Points, Subject
from workers.models.interface.model import Array, Arrays, Prepared


class Polynomial(Subject[Any]):
    """Rows of numbers; a label's log-odds are a sum of weights times a power of the numbers. It stands for its own
    model, too.
    """

    def __init__(self, weights: Sequence[Sequence[float]], power: int) -> None:
        super().__init__(self)
        self.weights = torch.tensor(weights)
        self.power = power
        self.passes: list[int] = []

    @property
    def tasks(self) -> Mapping[str, Sequence[str]]:
        return {"which": [str(n) for n in range(len(self.weights))]}

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        return {"x": np.stack([row.arrays["x"] for row in rows])}

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        return {task: (arrays["x"][rows] ** self.power @ self.weights.numpy().T) for task, rows in wanted.items()}

    def about(self, task: str, content: Any, params: Any, prepared: Prepared) -> tuple[Arrays, Any]:
        raise NotImplementedError("the parent's side is not in these tests")

    def told(self, measured: Attribution, about: Any, *, steps: int) -> Explanation:
        raise NotImplementedError("the parent's side is not in these tests")

    def line(self, task: str, row: Arrays, about: Arrays) -> IntegrationPath:
        x = torch.from_numpy(row["x"].copy())
        return IntegrationPath(task, x, torch.full_like(x, 0.5))

    def cost(self, line: IntegrationPath) -> int:
        return 1

    def along(self, line: IntegrationPath, other: IntegrationPath) -> bool:
        return len(line.x) == len(other.x)

    def log_odds(self, points: Sequence[Points]) -> torch.Tensor:
        values = torch.cat([own.values for own in points])
        self.passes.append(len(values))
        targets = torch.tensor([own.target for own in points for _ in own.values])
        return margin(values**self.power @ self.weights.T, targets, rivals=False)

    def condensed(self, contributions: torch.Tensor) -> torch.Tensor:
        return contributions


WEIGHTS = [[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]
ROWS = [[0.1, 0.9, 1.5], [1.0, 1.0, 1.0], [-1.0, 2.0, 0.5]]


def request(row: Sequence[float], steps: int = 4, target: int | None = None) -> ExplanationRequest:
    return ExplanationRequest({"x": Carried.of(np.array(row, dtype=np.float32))}, 1, steps=steps, target=target)


def run(engine: ExplainingEngine) -> dict[Any, Answer]:
    found: dict[Any, Answer] = {}
    while len(engine):
        found |= {stepped.key: msgspec.convert(stepped.output, Answer) for stepped in engine.step()}
    return found


def contributions(answer: Answer) -> Array:
    assert answer.contributions is not None
    return answer.contributions.array


@pytest.mark.parametrize("power", [1, 2, 3])
def test_contributions_are_those_of_the_closed_form(power: int) -> None:
    """Where the log-odds are a sum over the inputs, an input's part is its own term less that of the baseline; of
    all labels alike.
    """
    engine = ExplainingEngine(Polynomial(WEIGHTS, power), step_cost=5)
    for place, row in enumerate(ROWS):
        for target in (0, 1):
            engine.join((place, target), "which", request(row, target=target), urgency=0)
    for (place, target), answer in run(engine).items():
        terms = np.array(WEIGHTS[target]) * (np.array(ROWS[place]) ** power - 0.5**power)
        np.testing.assert_allclose(contributions(answer), terms, atol=1e-5)
        assert answer.value - answer.base == pytest.approx(terms.sum(), abs=1e-5)
        assert answer.target == target


def test_the_best_label_is_explained_unless_another_is_named() -> None:
    """And whoever wants no explanation gets the model's output at once."""
    engine = ExplainingEngine(Polynomial(WEIGHTS, 1), step_cost=5)
    engine.join("explained", "which", request(ROWS[0]), urgency=0)
    engine.join("plain", "which", request(ROWS[0], steps=0), urgency=0)
    [first] = engine.step()
    assert first.key == "plain"
    assert msgspec.convert(first.output, Answer).target is None
    answer = run(engine)["explained"]
    assert answer.target == int(np.argmax(np.array(WEIGHTS) @ ROWS[0]))
    np.testing.assert_allclose(answer.output.array, np.array(WEIGHTS) @ ROWS[0], rtol=1e-6)


def test_a_step_is_no_larger_than_it_may_be() -> None:
    """So that whoever waits between two of them waits no longer than for a micro-batch."""
    subject = Polynomial(WEIGHTS, 1)
    engine = ExplainingEngine(subject, step_cost=7)
    for n, row in enumerate(ROWS):
        engine.join(n, "which", request(row, steps=9), urgency=0)
    run(engine)
    assert max(subject.passes) == 7
    assert sum(subject.passes) == 3 * (9 + 2)
    assert len(subject.passes) == 5, "points of several lines fill a step together"


def test_the_urgent_go_first_and_nobody_waits_for_ever() -> None:
    """One step in eight is for whoever has waited longest."""
    engine = ExplainingEngine(Polynomial(WEIGHTS, 1), step_cost=4)
    engine.join("bulk", "which", request(ROWS[0], steps=2), urgency=9)
    engine.step()
    ended: list[Any] = []
    for n in range(12):  # an urgent one is always there
        engine.join(n, "which", request(ROWS[1], steps=2), urgency=0)
        ended += [stepped.key for stepped in (*engine.step(), *engine.step())]
    assert ended[:3] == [0, 1, 2]
    assert "bulk" in ended
    engine.leave(11)
    engine.clear()
    assert not len(engine)


def test_the_way_is_weighed_to_one() -> None:
    """Its ends count nothing: they are there for what the log-odds are at them."""
    for steps in (1, 2, 32, 512):
        places, weights = quadrature(steps)
        assert len(places) == len(weights) == steps + 2
        assert sum(weights) == pytest.approx(1.0)
        assert places[-2:] == (0.0, 1.0)
        assert weights[-2:] == (0.0, 0.0)
        assert all(0 < place < 1 for place in places[:-2])


def test_log_odds_are_what_a_softmax_means_by_them() -> None:
    """For two labels log(p / (1 - p)); with more, the mean of the others stands for them; a label alone is its own
    logit.
    """
    logits = torch.tensor([[1.0, 3.0], [0.5, -0.5]])
    odds = margin(logits, torch.tensor([1, 1]), rivals=True)
    torch.testing.assert_close(odds, torch.logit(logits.softmax(-1)[:, 1]))
    assert margin(torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([2]), rivals=True).item() == pytest.approx(4.5)
    assert margin(torch.tensor([[2.5]]), torch.tensor([0]), rivals=True).item() == 2.5
    assert margin(torch.tensor([[2.5, 7.0]]), torch.tensor([0]), rivals=False).item() == 2.5
