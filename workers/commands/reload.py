"""`argosy models reload`: declares other settings for a model of the running fleet, and waits for its nodes."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping
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
    """Wait until every present node has answered; return those that failed."""
    answered: dict[str, ModelState] = {}
    while True:
        states = _states(publisher, declaration.model)
        if any(state.generation > declaration.generation for state in states.values()):
            raise NotTaken(f"model {declaration.model} was declared again in the meantime")
        for node, state in states.items():
            done = state.generation == declaration.generation and state.state != "loading"
            if done and node not in answered:
                answered[node] = state
                say(f"{node}: {state.error or state.revision}")
        waiting = sorted(states.keys() - answered.keys())
        if not waiting:
            if not states:
                say("no running worker serves it; workers that start later will load it")
            return {node: state for node, state in answered.items() if state.state == "failed"}
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer yet from {', '.join(waiting)}")
        time.sleep(LOOK_EVERY_S)


def _states(publisher: Publisher, model: str) -> dict[str, ModelState]:
    return {node.name: node.models[model] for node in presence.nodes(publisher) if model in node.models}
