"""The tasks of a site as its programs see them: those of the cascade belong to the forwarder, and have a mark."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from producers.wire.catalogue import KINDS, Catalogue, Kind, Task
from producers.wire.edge.edge_settings import EDGE, EdgeSettings, EdgeTask, edge_settings
from producers.wire.errors import ConfigurationError
from producers.wire.fleet_file import known
from producers.wire.kinds.explanation import ExplainedLabels
from producers.wire.kinds.kind import Labels, Vector

#: The parameter by which an input is marked: it never leaves the site, nor anything that it can be told from.
STAY = "stay_on_site"


def programs_catalogue(path: str | Path) -> Catalogue:
    """Return the catalogue of a ``fleet.toml`` for programs: with the tasks of ``[edge]``, if it has that table.

    Raises ConfigurationError, naming the setting.
    """
    own = Catalogue.from_toml(path)
    settings = edge_settings(path)
    return own if settings is None else with_cascade(own, settings, where=str(path))


def with_cascade(own: Catalogue, settings: EdgeSettings, *, where: str) -> Catalogue:
    """Return a site's own catalogue with its cascade tasks in the place of those of the same names."""
    if any(task.model == EDGE for task in own.tasks.values()):
        raise ConfigurationError(f"{where}: models.{EDGE}: this name is taken by [edge]; give the model another name")
    tasks = {name: _task(own, name, task, f"{where}: edge.tasks.{name}") for name, task in settings.tasks.items()}
    return Catalogue({**own.tasks, **tasks}, own.limits)


def _task(own: Catalogue, name: str, task: EdgeTask, setting: str) -> Task:
    if task.only_at_centre:
        kind = _kind_at_centre(task, setting)
        _check_pictures(task, kind, setting)
        return Task(name, _marked(kind, leaves=True), EDGE, "answered by the centre")
    answering = task.site or name
    if answering not in own.tasks:
        problem = f"no task {answering!r} at this site; {known(answering, own.tasks)}"
        remedy = "; a task without a model here needs `only_at_centre` and `kind`"
        raise ConfigurationError(f"{setting}.site: {problem}{remedy}")
    found = own.tasks[answering]
    if not task.stay_on_site and found.kind.output not in (Labels, ExplainedLabels):
        there = ", ".join(sorted(kind.name for kind in KINDS.values() if kind.output in (Labels, ExplainedLabels)))
        problem = f"answers of the kind {found.kind.name!r} have no score that a threshold could judge"
        raise ConfigurationError(f"{setting}: {problem}; a cascade can have {there}")
    _check_pictures(task, found.kind, setting)
    return Task(name, _marked(found.kind, leaves=False), EDGE, found.summary, found.params)


def _check_pictures(task: EdgeTask, kind: Kind, setting: str) -> None:
    """Refuse smaller pictures where the answer's numbers count their pixels, as boxes do."""
    if task.most_side and (kind.modality != "image" or kind.output is not Labels):
        there = ", ".join(
            sorted(one.name for one in KINDS.values() if one.modality == "image" and one.output is Labels)
        )
        raise ConfigurationError(f"{setting}.most_side: is for pictures that get labels ({there}); leave it out")


def _kind_at_centre(task: EdgeTask, setting: str) -> Kind:
    if task.kind not in KINDS:
        raise ConfigurationError(f"{setting}.kind: no kind {task.kind!r}; {known(task.kind, KINDS)}")
    kind = KINDS[task.kind]
    if kind.makes_files or kind.output == Vector or "stream" in kind.params.__struct_fields__:
        problem = f"answers of the kind {kind.name!r} (files, vectors, streams) are not fetched from the centre"
        raise ConfigurationError(f"{setting}.kind: {problem}; let programs ask the centre's gateway for them")
    return kind


@cache
def _marked(kind: Kind, *, leaves: bool) -> Kind:
    """Return a kind whose parameters have the mark. For tasks that only the centre answers it can only be false."""
    base = kind.params

    def check(self: Any) -> None:
        getattr(base, "__post_init__", lambda _: None)(self)
        if leaves and getattr(self, STAY):
            raise ValueError(f"`{STAY}`: only the centre has a model for this task; leave the mark or the item out")

    marked = msgspec.defstruct(
        f"Marked{base.__name__}",
        [(STAY, bool, False)],
        bases=(base,),
        namespace={"__post_init__": check, "__doc__": base.__doc__},
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    return replace(kind, params=marked)
