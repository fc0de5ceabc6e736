"""`argosy models reload`: declares other settings for a model of the running fleet, and waits for its nodes."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from producers.wire.command_line import user
from producers.wire.errors import ArgosyError, ConfigurationError
from producers.wire.publisher import Publisher
from results_store.records import Declaration
from results_store.store import Store
from workers.node import declared_settings, presence
from workers.node.presence import ModelState
from workers.settings import ModelSettings, Settings

#: Seconds between two looks at the nodes.
LOOK_EVERY_S = 0.2


class NotTaken(ArgosyError):
    """Some node does not serve the declared settings; `str()` names it and the reason."""


def changed(settings: Settings, name: str, *, revision: str | None, source: str | None) -> ModelSettings:
    """Return a model's settings in the file, with another revision or source. Raises ConfigurationError."""
    if name not in settings.models:
        raise ConfigurationError(f"no model {name!r} in the settings; known models: {', '.join(settings.models)}")
    chosen = settings.models[name]
    table = _parsed(source) if source is not None else dict(chosen.source)
    if revision is not None:
        if "hub" not in table:
            raise ConfigurationError(f"models.{name}.source: only a `hub` source has revisions; use --source")
        table = {**table, "revision": revision}
    found = msgspec.structs.replace(chosen, source=table)
    _ = declared_settings.with_model(settings, name, declared_settings.table(found))
    return found


def _parsed(source: str) -> dict[str, Any]:
    """Return the value of an option: a folder, or a table as in a fleet.toml."""
    if not source.lstrip().startswith("{"):
        return {"path": str(Path(source).expanduser().resolve())}
    try:
        found: dict[str, Any] = tomllib.loads(f"source = {source}")["source"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"--source: neither a folder nor a table as in fleet.toml: {error}") from error
    return found


def reload(
    store: Store,
    publisher: Publisher,
    name: str,
    chosen: ModelSettings,
    *,
    file: ModelSettings,
    timeout_s: float,
    say: Callable[[str], object],
) -> None:
    """Declare a model's settings and wait until every node serves them. If a node cannot, all return to the previous
    settings.

    Raises NotTaken, BrokerUnavailable, StoreUnavailable.
    """
    digest = declared_settings.digest(file)
    declaration = store.declarations.declare(name, declared_settings.table(chosen), file_digest=digest, by=user())
    try:
        failed = _followed(publisher, declaration, time.monotonic() + timeout_s, say)
    except TimeoutError as error:
        raise NotTaken(f"{error}; they will load it when they can: see `argosy models list`") from None
    if failed:
        store.declarations.declare(name, declaration.previous, file_digest=digest, proven=True, by=user())
        reasons = "; ".join(f"{node}: {state.error}" for node, state in failed.items())
        raise NotTaken(f"model {name} stays unchanged on all nodes: {reasons}")


def _followed(
    publisher: Publisher, declaration: Declaration, deadline: float, say: Callable[[str], object]
) -> Mapping[str, ModelState]:
    """Wait until each node has answered that is present or began to load; return those that failed."""
    answers = _Answers(publisher, declaration, say)
    while True:
        is_late = time.monotonic() > deadline
        waiting = answers.look(is_last=is_late)
        if not waiting or (is_late and answers.failed):
            if not answers.every:
                say("no running worker serves it; workers that start later will load it")
            return answers.failed
        if is_late:
            raise TimeoutError(f"no answer yet from {', '.join(waiting)}")
        time.sleep(LOOK_EVERY_S)


class _Answers:
    """The answers of nodes to a declaration: `every` has them by node. A node that fails says why in its state."""

    def __init__(self, publisher: Publisher, declaration: Declaration, say: Callable[[str], object]) -> None:
        self.every: dict[str, ModelState] = {}
        self._publisher = publisher
        self._declaration = declaration
        self._say = say
        self._began: dict[str, set[float]] = {}  # nodes that began to load, with the starts of their processes

    @property
    def failed(self) -> dict[str, ModelState]:
        return {name: state for name, state in self.every.items() if state.state == "failed"}

    def look(self, *, is_last: bool) -> list[str]:
        """Look at the nodes; return those that have not answered. Raises NotTaken, BrokerUnavailable."""
        model, generation = self._declaration.model, self._declaration.generation
        nodes = {node.name: node for node in presence.nodes(self._publisher) if model in node.models}
        if any(node.models[model].generation > generation for node in nodes.values()):
            raise NotTaken(f"model {model} was declared again in the meantime")
        for name, node in nodes.items():
            state = node.models[model]
            if state.generation == generation or name in self._began:
                self._began.setdefault(name, set()).add(node.figures.get("started_at", 0.0))
            if state.generation == generation and state.state != "loading":
                self._note(name, state)
        self._note_lost(away=self._began.keys() - nodes.keys() if is_last else ())
        return sorted((nodes.keys() | self._began.keys()) - self.every.keys())

    def _note_lost(self, away: Collection[str]) -> None:
        """Note the nodes whose processes ended while they loaded. A single death may have another cause."""
        if not (unanswered := self._began.keys() - self.every.keys()):
            return
        ends = {end.name: end.reason for end in presence.ends(self._publisher, self._declaration.declared_at)}
        for name in sorted(unanswered):
            cause = ""
            if name in ends:
                cause = f"it ended itself while it loaded this version: {ends[name]}"
            elif len(self._began[name]) > 2:
                cause = "its process died twice while it loaded this version; see its log"
            elif name in away:
                cause = "its process ended while it loaded this version, and is not back; see its log"
            if cause:
                self._note(name, ModelState(revision="", state="failed", error=cause))

    def _note(self, name: str, state: ModelState) -> None:
        if name not in self.every:
            self.every[name] = state
            self._say(f"{name}: {state.error or state.revision}")
