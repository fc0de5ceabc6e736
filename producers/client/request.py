"""The request of a submission, checked before anything is sent. Pure: the sync and the asyncio client share it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from producers.client.redaction import redacted
from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import InvalidInput
from producers.wire.forms import as_float, is_text, parameters, plain, sendable
from producers.wire.messages import Input, Item, Params, Priority


@dataclass(frozen=True, slots=True)
class NewItem:
    """An input with its own key, parameters and origin.

    `key` is the submitter's identifier, kept with the result. `params` add to the parameters of the whole submission,
    in the same shape. `origin` is the place of the input, for error messages: ``reviews.csv:17``.
    """

    input: object
    key: str | None = None
    params: Mapping[str, Any] | None = None
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """The request of a submission for every input, checked.

    `single` is true if a single task was named, not a sequence.

    `lacking` are the tasks whose required parameters are missing: each item must have its own. `names` are the tasks'
    names.
    """

    catalogue: Catalogue
    tasks: tuple[Task, ...]
    single: bool
    priority: Priority
    params: Mapping[str, Params]
    models: Mapping[str, tuple[str, ...]]
    deadline_s: float | None = None
    lacking: tuple[Task, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def check(
        cls,
        catalogue: Catalogue,
        task: str | Sequence[str],
        *,
        priority: Priority | str,
        deadline_s: float | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Request:
        """Return the request. Raises InvalidInput, which names the invalid argument."""
        tasks = _tasks(catalogue, task)
        single = isinstance(task, str)
        given = _params(tasks, params, single=single, field="params")
        for named in tasks:
            own = given.get(named.name, {})
            if own and not named.lacks(own):
                catalogue.check_params(named, own, field=_where("params", named, single=single))
        return cls(
            catalogue=catalogue,
            tasks=tasks,
            names=tuple(named.name for named in tasks),
            single=single,
            priority=parse_priority(priority),
            params=given,
            lacking=tuple(task for task in tasks if task.lacks(given.get(task.name, {}))),
            models=catalogue.by_model(task.name for task in tasks),
            deadline_s=_deadline(deadline_s),
        )

    def streamed(self) -> Request:
        """Return the request for an answer that arrives in pieces. Raises InvalidInput if its task writes no text."""
        task = self.tasks[0]
        if not self.single or "stream" not in task.kind.params.__struct_fields__:
            raise InvalidInput("task", f"{task.name!r} writes no text to read in pieces", "use `submit`")
        own = {**self.params.get(task.name, {}), "stream": True}
        chosen = {**task.params, **own}
        if chosen.get("temperature") and chosen.get("seed") is None:
            own["seed"] = secrets.randbits(63)  # a worker that begins the answer anew writes the same text
        return replace(self, params={task.name: own})

    def deadline_at(self, now: float) -> float | None:
        """Return the time after which items are not computed any more, by the clock of `now`, the submission's time."""
        return None if self.deadline_s is None else now + self.deadline_s

    @property
    def takes_texts(self) -> bool:
        """Whether a text needs no check but `is_text`."""
        limits = self.catalogue.limits
        return self.tasks[0].kind.modality == "text" and not limits.redact and not self.lacking

    def text(self, seq: int, value: str, key: str | None = None) -> Item | None:
        """Return a text as an item, if the request `takes_texts`; None if `item` must say what is wrong with it."""
        if not is_text(value, self.catalogue.limits):
            return None
        return Item(seq, value, self.names, self.params, key)  # type: ignore[arg-type]  # a dictionary nobody changes

    def item(self, seq: int, value: object, *, field: str) -> Item:
        """Return `value`, an input or a NewItem, as a checked item. Raises InvalidInput, naming the invalid field."""
        key = params = None
        if isinstance(value, NewItem):
            key, params, value = value.key, value.params, value.input
            if key is not None and not isinstance(key, str):
                raise InvalidInput(f"{field}.key", f"must be text, not {type(key).__name__}", "convert it with str()")
            if key is not None and type(key) is not str:
                key = plain(key)
            if key is not None and not key.isascii():
                sendable(key, f"{field}.key")
        # positional arguments: this runs for each of millions of items
        return Item(seq, self._input(value, field), self.names, self._item_params(params, field), key)

    def _input(self, value: object, field: str) -> Input:
        if isinstance(value, Path):
            value = value.absolute()  # the worker has another working directory
        # all tasks have one modality, so that an input valid for the first is valid for all
        checked = self.catalogue.check_input(self.tasks[0], value, field=field)
        names = self.catalogue.limits.redact
        if not names:
            return checked
        # again, as a worker will: the replaced text may be longer
        return self.catalogue.check_input(self.tasks[0], redacted(checked, names), field=field)

    def _item_params(self, params: Mapping[str, Any] | None, field: str) -> dict[str, Params]:
        if not params and not self.lacking:
            return dict(self.params)
        own = _params(self.tasks, params, single=self.single, field=f"{field}.params")
        merged = {name: {**self.params.get(name, {}), **own.get(name, {})} for name in {**self.params, **own}}
        for task in self.tasks:
            if task.name in own or task in self.lacking:
                where = _where(f"{field}.params", task, single=self.single)
                self.catalogue.check_params(task, merged.get(task.name, {}), field=where)
        return merged


def parse_priority(value: object, field: str = "priority") -> Priority:
    """Return a Priority, given itself or its name in any case. Raises InvalidInput."""
    if isinstance(value, Priority):
        return value
    if isinstance(value, str) and value.upper() in Priority.__members__:
        return Priority[value.upper()]
    known = ", ".join(name.lower() for name in Priority.__members__)
    raise InvalidInput(field, f"must be a Priority or its name, not {value!r}", f"one of {known}")


def _tasks(catalogue: Catalogue, task: object) -> tuple[Task, ...]:
    if isinstance(task, str):
        return (catalogue.task(task),)
    if not isinstance(task, Sequence):
        raise InvalidInput("task", f"must be a task's name or several, not {type(task).__name__}")
    if not task:
        raise InvalidInput("task", "names no task", f"known tasks: {', '.join(sorted(catalogue.tasks))}")
    tasks = tuple(catalogue.task(name, field=f"task[{place}]") for place, name in enumerate(task))
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise InvalidInput("task", f"names a task twice ({', '.join(names)})", "name each task once")
    modalities = sorted({task.kind.modality for task in tasks})
    if len(modalities) > 1:
        raise InvalidInput(
            "task", f"mixes tasks for {' and '.join(modalities)}", "submit the tasks of each modality apart"
        )
    return tasks


def _where(field: str, task: Task, *, single: bool) -> str:
    return field if single else f"{field}.{task.name}"


def _params(tasks: tuple[Task, ...], params: object, *, single: bool, field: str) -> dict[str, Params]:
    """Return unchecked parameters by task name, given for the single task or as a mapping by task."""
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise InvalidInput(field, f"must be a mapping, not {type(params).__name__}")
    by_task: Mapping[Any, Any] = {tasks[0].name: params} if single else params
    named = {task.name: task for task in tasks}
    checked: dict[str, Params] = {}
    for name, values in by_task.items():
        where = field if single else f"{field}.{name}"
        if name not in named:
            raise InvalidInput(where, "is not a requested task", f"requested: {', '.join(named)}")
        if not isinstance(values, Mapping):
            raise InvalidInput(where, f"must be a mapping of parameters, not {type(values).__name__}")
        if values:
            checked[name] = parameters(values, where)
    return checked


def _deadline(deadline_s: object) -> float | None:
    if deadline_s is None:
        return None
    given = as_float(deadline_s)
    if given is None:
        raise InvalidInput("deadline_s", f"must be a number of seconds, not {type(deadline_s).__name__}")
    if not math.isfinite(given) or given <= 0:
        raise InvalidInput("deadline_s", f"must be more than 0 and finite, not {given}", "leave it out for no deadline")
    return given
