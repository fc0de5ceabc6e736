"""The explaining side of a model: a stepwise model with its own copy of the model on torch, and its `Subject`."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from producers.wire.kinds.explanation import Explanation
from workers.models.explaining import explanation_request, subject_lookup
from workers.models.explaining.explaining_engine import ExplainingEngine
from workers.models.explaining.explanation_request import Answer, ExplanationRequest
from workers.models.explaining.subject import Attribution, Subject
from workers.models.interface import class_lookup, ragged
from workers.models.interface.model import Array, LoadingFailed, Model, ModelSpec, Prepared, digest
from workers.models.interface.options import Options
from workers.models.interface.stepwise import EngineModel, StepResult

#: The passes of a point: forward and backward.
_POINT = 2

#: A step waits this long for weights that are still loading. Other work has the device meanwhile.
_LOOK_AGAIN_S = 0.01


@dataclass(frozen=True, slots=True)
class _Aside:
    """The data that `finish` needs: the model's own row, and for each task the data of its explanation."""

    row: Prepared
    about: Mapping[str, Any]


class ExplainingOptions(Options, frozen=True, rename={"class_": "class"}):
    """`class` and `options` are those of the explained model. `step_cost` limits the cost of a step's points.
    `preloaded` loads the weights at the start instead of with the first item.
    """

    class_: str
    options: dict[str, Any]
    step_cost: int
    preloaded: bool


class ExplainingModel(EngineModel[ExplainingEngine]):
    """A stepwise model: a copy of the explained model, and the engine of its explanations."""

    options_class = ExplainingOptions
    options: ExplainingOptions
    explains = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._device = "cpu"
        self._loading: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._loaded = False

    @cached_property
    def base(self) -> Model:
        """The explained model, always on the reference backend."""
        own = self.spec
        spec = ModelSpec(own.name, own.folder, own.revision, own.tasks, self.options.options)
        model: Model = class_lookup.find(self.options.class_)(spec)
        return model

    @cached_property
    def subject(self) -> Subject[Any]:
        found = subject_lookup.of(self.base)
        assert found is not None, "other models have no explaining side"
        return found

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        return self.base.revision

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Prepare an input like the model itself. The row has a packed request for each task, uint8 `(bytes,)`. Its
        size covers all passes. Raises InvalidInput.
        """
        row = self.base.prepare(content, params)
        refused = dict(row.refused)
        found: dict[str, ExplanationRequest] = {}
        about: dict[str, Any] = {}
        for task, own in params.items():
            try:
                if task not in refused:
                    found[task], about[task] = self._request(task, content, own, row)
            except InvalidInput as error:
                refused[task] = error
        if not found:
            raise next(iter(refused.values()))
        arrays = {task: request.packed() for task, request in found.items()}
        size = row.size * (1 + sum(_POINT * (own.steps + 2) for own in found.values() if own.steps))
        return Prepared(arrays, size, digest(arrays), refused, _Aside(row, about))

    def _request(self, task: str, content: Any, params: Any, row: Prepared) -> tuple[ExplanationRequest, Any]:
        carried = explanation_request.carried(row.arrays)
        if not getattr(params, "explain", False):
            return ExplanationRequest(carried, row.size), None
        labels = self.subject.tasks.get(task)
        if labels is None:
            raise InvalidInput(f"params.{task}.explain", "is not supported for this task", "leave it out")
        target = params.explain_label
        if target is not None and target not in labels:
            known = ", ".join(labels[:20]) + ", …" * (len(labels) > 20)
            raise InvalidInput(
                f"params.{task}.explain_label", f"is {target!r}, not a label of the task", f"use one of {known}"
            )
        arrays, about = self.subject.about(task, content, params, row)
        place = None if target is None else list(labels).index(target)
        return ExplanationRequest(
            carried, row.size, explanation_request.carried(arrays), params.explain_steps, place
        ), about

    def finish(self, task: Task, output: Array, params: Any, prepared: Prepared) -> Any:
        """Return the model's own answer to a `ragged` row, with the explanation if requested."""
        answer = msgspec.convert(ragged.unpack(output), Answer)
        own, aside = answer.output.array, prepared.aside
        if answer.target is None or answer.contributions is None:
            return self.base.finish(task, own, params, aside.row)
        every = self.base.finish(task, own, msgspec.structs.replace(params, top_k=None), aside.row)
        measured = Attribution(answer.contributions.array, answer.value, answer.base)
        explanation = self.subject.told(measured, aside.about[task.name], steps=params.explain_steps)
        return _with(every, self.subject.tasks[task.name][answer.target], explanation, params.top_k)

    # --- in the device process ---

    def load(self, device: str) -> None:
        self._device = device
        self._engine = ExplainingEngine(self.subject, step_cost=self.options.step_cost)
        if self.options.preloaded:
            self._load()
            if self._failure is not None:
                raise self._failure

    def _load(self) -> None:
        try:
            self.base.load(self._device)
            self.subject.device = self._device
            self._loaded = True
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for it
            self._failure = error

    def join(self, key: Hashable, task: str, request: Array, *, urgency: int) -> None:
        self.engine.join(key, task, explanation_request.unpack(request), urgency=urgency)

    def step(self) -> list[StepResult]:
        return super().step() if self._is_loaded() else []

    def _is_loaded(self) -> bool:
        """Load in a thread, so that other models' batches run meanwhile. Requests of this model wait."""
        if not self._loaded:
            if self._loading is None:
                self._loading = threading.Thread(target=self._load, name="load-explaining", daemon=True)
                self._loading.start()
            self._loading.join(_LOOK_AGAIN_S)
            if not self._loading.is_alive():
                self._loading = None
                failure, self._failure = self._failure, None
                if failure is not None:
                    problem = f"cannot load the weights for explanations: {type(failure).__name__}: {failure}"
                    raise LoadingFailed(problem) from failure
        return self._loaded


def _with(every: list[dict[str, Any]], label: str, why: Explanation, top_k: int | None) -> list[dict[str, Any]]:
    """Return the best labels, with the explanation of `label`, which is appended if it is not among them."""
    explained = next(one for one in every if one["label"] == label) | {"explanation": why}
    best = [explained if one["label"] == label else one for one in every[:top_k]]
    return best if explained in best else [*best, explained]
