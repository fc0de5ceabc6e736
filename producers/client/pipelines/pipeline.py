"""A pipeline as a user writes it, and its check: all names, joins and forms of input, before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Self

import msgspec

from producers.client.request import Request
from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import InvalidInput
from producers.wire.forms import Modality, parameters
from producers.wire.messages import MOST_NAME, Priority
from producers.wire.pipelines.plan import Plan, Step
from producers.wire.pipelines.selectors import SELECTORS, Selector, checked_options, reads
from results_store.sql.item_numbering import MAX_DEPTH, MAX_STEPS


@dataclass(frozen=True, slots=True)
class _Wanted:
    name: str
    task: str
    of: tuple[str, ...]
    take: str | None
    options: Mapping[str, Any]
    params: Mapping[str, Any]


class Pipeline:
    """Steps that feed each other.

        pipeline = Pipeline().step("text", task="speech")
        pipeline.step("mood", task="sentiment", of="text").step("topic", task="topic", of="text")

    The submitted inputs go to the steps without `of`. A step may feed several others. `take` names the selector that
    makes a step's input (`producers.wire.pipelines.selectors`); leave it out if only one selector fits.
    """

    def __init__(self) -> None:
        self._steps: dict[str, _Wanted] = {}

    def step(
        self,
        name: str,
        *,
        task: str,
        of: str | Sequence[str] = (),
        take: str | None = None,
        options: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Self:
        """Add a step; return the pipeline. `options` go to the selector, `params` to the task. Raises InvalidInput."""
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > MOST_NAME:
            raise InvalidInput("name", f"must be a name for the step, not {name!r:.80}")
        if name in self._steps:
            raise InvalidInput(f"steps.{name}", "exists already", "give each step its own name")
        before = (of,) if isinstance(of, str) else tuple(of)
        given = {"options": options or {}, "params": params or {}}
        own = {field: _plain(values, f"steps.{name}.{field}") for field, values in given.items()}
        self._steps[name] = _Wanted(name, task, before, take, **own)
        return self

    def check(self, catalogue: Catalogue) -> Plan:
        """Return the plan of the pipeline for these tasks. Raises InvalidInput, naming the step and its problem."""
        if not self._steps:
            raise InvalidInput("steps", "are none", "add one: Pipeline().step('mood', task='sentiment')")
        if len(self._steps) > MAX_STEPS:
            raise InvalidInput("steps", f"are {len(self._steps)}, over {MAX_STEPS}", "submit them as several pipelines")
        check = _Check(catalogue, self._steps)
        plan = Plan(tuple(check.step(self._steps[name]) for name in self._order()))
        check.inputs(plan)
        _check_spreads(plan)
        return plan

    def _order(self) -> list[str]:
        """Return the names of the steps, each after its source steps, otherwise in the order of `step`."""
        for wanted in self._steps.values():
            for name in wanted.of:
                if name not in self._steps:
                    known = ", ".join(self._steps)
                    raise InvalidInput(f"steps.{wanted.name}.of", f"there is no step {name!r}", f"there are: {known}")
        try:
            return list(TopologicalSorter({w.name: w.of for w in self._steps.values()}).static_order())
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise InvalidInput("steps", f"form a cycle: {circle}", "leave out one `of`") from error


def _plain(values: object, field: str) -> dict[str, Any]:
    """Return options or parameters as the job keeps them, so that workers read those that were checked."""
    if not isinstance(values, Mapping):
        raise InvalidInput(field, f"must be a mapping, not {type(values).__name__}")
    from results_store.sql.columns import cleaned  # with SQLAlchemy, which a client without pipelines does not need

    found = parameters(values, field)
    if cleaned(found) != found:
        raise InvalidInput(field, "has NUL, which the store cannot keep in a pipeline", "leave it out")
    return found


class _Check:
    """Check the steps in their order. Each check uses the tasks of the steps before."""

    def __init__(self, catalogue: Catalogue, wanted: Mapping[str, _Wanted]) -> None:
        self._catalogue = catalogue
        self._wanted = wanted
        self._tasks: dict[str, Task] = {}

    def step(self, wanted: _Wanted) -> Step:
        where = f"steps.{wanted.name}"
        task = self._tasks[wanted.name] = self._catalogue.task(wanted.task, field=f"{where}.task")
        self._catalogue.check_params(task, dict(wanted.params), field=f"{where}.params")
        params: dict[str, Any] = msgspec.to_builtins(dict(wanted.params))
        if not wanted.of:
            if wanted.take is not None or wanted.options:
                raise InvalidInput(
                    f"{where}.of",
                    "is missing, but `take` or `options` is given",
                    "name a step in `of`, or leave out `take` and `options`",
                )
            return Step(name=wanted.name, task=task.name, model=task.model, params=params)
        if len(set(wanted.of)) < len(wanted.of):
            raise InvalidInput(f"{where}.of", "names a step twice", "name each step once")
        selector = self._selector(wanted, task)
        checked_options(selector, wanted.options, f"{where}.options")
        return Step(
            name=wanted.name,
            task=task.name,
            model=task.model,
            of=wanted.of,
            take=selector.name,
            options=msgspec.to_builtins(dict(wanted.options)),
            params=params,
        )

    def inputs(self, plan: Plan) -> None:
        """Check the steps that read the inputs: together they are one item, with a task for each step."""
        first = [step for step in plan.steps if not step.of]
        form = self._tasks[first[0].name].kind.modality
        for place, step in enumerate(first):
            kind = self._tasks[step.name].kind
            if kind.modality != form:
                problem = f"reads the inputs as {kind.modality}, while {first[0].name!r} reads them as {form}"
                raise InvalidInput(
                    f"steps.{step.name}", problem, "submit two pipelines, or let the step follow another"
                )
            same = next((other.name for other in first[:place] if other.task == step.task), None)
            if same:
                problem = f"reads the inputs for {step.task!r}, as {same!r} does"
                raise InvalidInput(f"steps.{step.name}", problem, f"let the steps behind it follow {same!r}")

    def _selector(self, wanted: _Wanted, task: Task) -> Selector:
        where = f"steps.{wanted.name}.take"
        if wanted.take is None:
            return self._usual(wanted, task)
        if wanted.take not in SELECTORS:
            raise InvalidInput(where, f"no selector {wanted.take!r}", f"there are: {', '.join(SELECTORS)}")
        selector = SELECTORS[wanted.take]
        if selector.shape != "join" and len(wanted.of) > 1:
            raise InvalidInput(f"steps.{wanted.name}.of", f"are several, but {selector.name!r} takes one", "use 'join'")
        for name in wanted.of:
            kind = self._tasks[name].kind
            if not reads(selector, kind):
                needed = "boxes" if selector.reads == "box" else "text" if selector.shape != "each" else "list of texts"
                raise InvalidInput(where, f"{selector.name!r} needs {needed}, but {name!r} ({kind.name}) has none")
            if selector.form not in (None, kind.modality):
                problem = (
                    f"{selector.name!r} needs an input that is {selector.form}, but {name!r} reads {kind.modality}"
                )
                raise InvalidInput(where, problem)
        gives = self._given(selector, wanted.of[0])
        if gives != task.kind.modality:
            problem = f"{selector.name!r} gives {gives}, but {task.name!r} reads {task.kind.modality}"
            raise InvalidInput(where, problem, "choose another selector or task")
        return selector

    def _usual(self, wanted: _Wanted, task: Task) -> Selector:
        """Return the selector of a step that names none: the first that fits."""
        names = ("join",) if len(wanted.of) > 1 else ("text", "crop", "input")
        for selector in (SELECTORS[name] for name in names):
            fits = all(reads(selector, self._tasks[name].kind) for name in wanted.of)
            if fits and self._given(selector, wanted.of[0]) == task.kind.modality:
                return selector
        kinds = " and ".join(self._tasks[name].kind.name for name in wanted.of)
        problem = f"nothing in {kinds} is {task.kind.modality}, which {task.name!r} reads"
        raise InvalidInput(f"steps.{wanted.name}.take", problem, f"name a selector: {', '.join(SELECTORS)}")

    def _given(self, selector: Selector, before: str) -> Modality:
        return selector.gives or self._tasks[before].kind.modality


def _check_spreads(plan: Plan) -> None:
    """Check that lists within lists are not too deep, and that joined or gathered parts belong together."""
    for step in plan.steps:
        where = f"steps.{step.name}"
        if len(plan.spreads[step.name]) > MAX_DEPTH:
            problem = f"is a list within {MAX_DEPTH} lists: {', '.join(plan.spreads[step.name])}"
            raise InvalidInput(where, problem, "gather one of them first")
        if not step.of:
            continue
        if step.selector.shape == "gather" and not plan.spreads[step.of[0]]:
            raise InvalidInput(
                f"{where}.take", f"cannot gather: there is only one {step.of[0]!r} for each input", "use 'text'"
            )
        before = sorted((plan.spreads[name] for name in step.of), key=len)
        if any(before[-1][: len(some)] != some for some in before):
            raise InvalidInput(f"{where}.of", "name parts of different lists", "gather each list first")


def first_request(catalogue: Catalogue, plan: Plan, *, priority: Priority | str, deadline_s: float | None) -> Request:
    """Return the request of a pipeline's submission: for the steps that read the inputs."""
    first = [step for step in plan.steps if not step.of]
    params = {step.task: step.params for step in first}
    return Request.check(
        catalogue, [step.task for step in first], priority=priority, deadline_s=deadline_s, params=params
    )
