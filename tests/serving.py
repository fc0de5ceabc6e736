"""Serves a folder as a fleet would, in this process: from TOML to a loaded model, from inputs to answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import InvalidInput
from workers.envelope.input_limits import InputLimits
from workers.envelope.inputs import read
from workers.models.backends.choice import REFERENCE, Backend
from workers.models.huggingface import model_for
from workers.models.interface.model import Model, ModelSpec
from workers.training.training_batches import all_of

#: What the models under test run on. `make test-gpu` says ``cuda:0``: there too they must answer as transformers does.
DEVICE = os.environ.get("ARGOSY_TEST_DEVICE", "cpu")

#: What padding, and another order of sums, may change of a score.
TOLERANCE = 2e-5


class Served:
    """A model that names no class, made of a folder and its tasks' kinds alone."""

    def __init__(self, folder: Path, tasks: Mapping[str, Any], backend: Backend = REFERENCE, **options: Any) -> None:
        self.catalogue = Catalogue({}).with_models({"own": {"tasks": tasks}}, where="fleet.toml")
        self.model: Any = model_for(ModelSpec("own", folder, "1", self.catalogue.tasks, options, backend))

    def load(self) -> Served:
        _ = self.model.revision  # what a worker asks for when it starts
        self.model.load(DEVICE)
        self.model.try_out()
        return self

    def task(self, name: str) -> Task:
        return self.catalogue.tasks[name]

    def ask(self, task: str, inputs: Sequence[Any], /, **params: Any) -> list[Any]:
        """Return the answers to inputs that go through the model together."""
        own = {task: self.catalogue.check_params(self.task(task), params, field="params")}
        return [answers[task] for answers in answered(self.model, [(self.content(task, one), own) for one in inputs])]

    def content(self, task: str, value: Any) -> Any:
        """Return an input as `prepare` gets it: checked and read."""
        return read(self.catalogue.check_input(self.task(task), value, field="input"), InputLimits())

    def refusal(self, task: str, value: Any, /, **params: Any) -> InvalidInput:
        """Return the error of an input that must be refused."""
        try:
            own = {task: self.catalogue.check_params(self.task(task), params, field="params")}
            self.model.prepare(self.content(task, value), own)
        except InvalidInput as error:
            return error
        raise AssertionError(f"{value!r} was not refused")


def answered(model: Model, items: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return each item's answers by task: items are contents with the parameters of the tasks wanted on them."""
    rows = all_of(model.prepare_many(*zip(*items, strict=True)))  # together, as a worker does
    wanted = {
        task: np.array([n for n, (_, params) in enumerate(items) if task in params], dtype=np.int64)
        for task in model.spec.tasks
    }
    wanted = {task: own for task, own in wanted.items() if len(own)}
    outputs = model.forward(model.collate(rows), wanted)
    return [
        {
            task: model.finish(model.spec.tasks[task], outputs[task][list(wanted[task]).index(n)], own, rows[n])
            for task, own in params.items()
        }
        for n, (_, params) in enumerate(items)
    ]


def pipeline(kind: str, folder: Path, **options: Any) -> Any:
    """Return transformers' own pipeline over a folder."""
    import transformers

    return transformers.pipeline(kind, model=str(folder), device=DEVICE, **options)


def assert_alike(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Check that two answers are equal, but for their floats, which may differ by the tolerance."""
    if isinstance(expected, Mapping):
        assert set(found) == set(expected)
        for name in expected:
            assert_alike(found[name], expected[name], tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), (found, expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other, tolerance)
    elif isinstance(expected, float | np.floating):
        assert found == pytest.approx(float(expected), abs=tolerance)
    else:
        assert found == expected
