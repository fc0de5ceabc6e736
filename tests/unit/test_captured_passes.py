"""Which passes are captured, and which no longer are; that a GPU replays them rightly, tests/gpu shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from workers.models.backends import cuda_graphs
from workers.models.backends.cuda_graphs import CapturedPasses, Tensors


class _Replay:
    """What a graph is to the passes: it writes into the same outputs again."""

    def __init__(self, inputs: Tensors, outputs: dict[str, torch.Tensor]) -> None:
        self.inputs, self.outputs, self.replays = inputs, outputs, 0

    def replay(self) -> None:
        self.replays += 1
        self.outputs["y"].copy_(self.inputs["x"] * 2)


class Passes(CapturedPasses):
    """Captures on a CPU, and is told whether launching is what takes the time."""

    def __init__(self) -> None:
        super().__init__(lambda inputs: {"y": inputs["x"] * 2})
        self.made: list[_Replay] = []

    def _capture(self, given: Tensors) -> Any:
        inputs = {name: tensor.clone() for name, tensor in given.items()}
        outputs = {"y": inputs["x"] * 2}
        self.made.append(_Replay(inputs, outputs))
        return cuda_graphs._Graph(self.made[-1], inputs, outputs)  # type: ignore[arg-type]

    @staticmethod
    def _synchronize() -> None: ...

    def ask(self, rows: int, times: int = 1) -> None:
        """Run passes of a shape, each with other numbers, and check what comes out."""
        for _ in range(times):
            given = torch.rand(rows, 1, 2)
            assert torch.equal(self({"x": given})["y"][:rows], given * 2)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cuda_graphs, "_PASSES_BEFORE_CAPTURE", 3)
    monkeypatch.setattr(cuda_graphs, "_MOST_SHAPES", 4)
    monkeypatch.setattr(cuda_graphs, "_LAUNCH_SHARE", 0.0)
    with torch.inference_mode():
        yield


def test_a_shape_that_comes_often_is_captured_once() -> None:
    """A capture takes as long as several passes: one that comes twice is not worth it."""
    passes = Passes()
    passes.ask(5, times=3)
    assert passes.captured == 0
    passes.ask(5, times=7)
    assert passes.captured == 1
    assert [made.replays for made in passes.made] == [7]


def test_shapes_in_between_make_no_difference() -> None:
    passes = Passes()
    for _ in range(4):
        passes.ask(3)
        passes.ask(8)
        passes.ask(2)
    assert passes.captured == 3


def test_what_was_not_used_for_longest_goes_first() -> None:
    passes = Passes()
    for rows in (2, 3, 4, 5):
        passes.ask(rows, times=4)
    assert passes.captured == 4
    passes.ask(2)  # so 3 is the oldest
    passes.ask(6, times=4)
    assert (passes.captured, len(passes.made)) == (4, 5)
    passes.ask(2)
    assert len(passes.made) == 5
    passes.ask(3, times=4)
    assert len(passes.made) == 6


def test_a_pass_whose_kernels_take_its_time_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph saves launching alone."""
    monkeypatch.setattr(cuda_graphs, "_LAUNCH_SHARE", 2.0)
    passes = Passes()
    passes.ask(5, times=20)
    assert passes.captured == 0


def test_rows_that_were_added_are_copies_and_tokens_zeros() -> None:
    """A row of nothing but padding would be divided by its length."""
    found = cuda_graphs.padded({"ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "x": torch.ones(2, 4, 4)}, 3, 5)
    assert found["ids"].tolist() == [[1, 2, 3, 0, 0], [4, 5, 6, 0, 0], [4, 5, 6, 0, 0]]
    assert found["x"].shape == (3, 4, 4)
