"""`argosy models reload` while a node's process dies: what each look at the nodes sees is scripted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from producers.wire.publisher import Publisher
from results_store.store import Store
from workers.commands import reload as redeclaring
from workers.commands.reload import NotTaken
from workers.node import presence
from workers.node.presence import ModelState, NodeEnd, NodeState
from workers.settings import ModelSettings

OLD, NEW = (msgspec.convert({"source": {"path": f"/srv/v{number}"}}, ModelSettings) for number in (1, 2))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(f"sqlite:///{tmp_path}/store.db")) as store:
        store.migrate()
        yield store


def node(name: str, generation: int, state: Any, started_at: float = 1.0) -> NodeState:
    said = ModelState(revision=f"v{generation + 1}", generation=generation, state=state)
    return NodeState(name=name, device="cpu", models={"m": said}, figures={"started_at": started_at})


def reload(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    looks: list[list[NodeState]],
    ends: tuple[NodeEnd, ...] = (),
    timeout_s: float = 0.5,
) -> list[str]:
    """Reload the model `m`; the last look is seen again and again."""

    def nodes(_: Publisher) -> list[NodeState]:
        return looks.pop(0) if len(looks) > 1 else looks[0]

    monkeypatch.setattr(redeclaring, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(presence, "nodes", nodes)
    monkeypatch.setattr(presence, "ends", lambda *_: list(ends))
    said: list[str] = []
    publisher = cast(Publisher, None)
    redeclaring.reload(store, publisher, "m", NEW, file=OLD, timeout_s=timeout_s, say=said.append)
    return said


def declared(store: Store) -> tuple[int, bool]:
    found = store.declarations.every()["m"]
    return found.generation, found.settings is None


def test_a_node_that_dies_while_it_loads_and_stays_away_has_failed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though all others serve the new version."""
    other = node("b", 1, "serving")
    with pytest.raises(NotTaken, match="stays unchanged on all nodes: a: its process ended"):
        reload(store, monkeypatch, [[node("a", 1, "loading"), other], [other]])
    assert declared(store) == (2, True)


def test_a_node_that_dies_twice_has_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started again each time, and begins to load again."""
    looks = [[node("a", 1, "loading", 1.0)], [node("a", 0, "serving", 2.0)], [node("a", 1, "loading", 2.0)],
             [], [node("a", 0, "serving", 3.0)]]  # fmt: skip
    with pytest.raises(NotTaken, match="its process died twice"):
        reload(store, monkeypatch, looks, timeout_s=60.0)
    assert declared(store) == (2, True)


def test_a_node_that_dies_once_may_still_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a look that did not see it."""
    looks = [[node("a", 1, "loading", 1.0)], [], [node("a", 0, "serving", 2.0)], [node("a", 1, "loading", 2.0)],
             [node("a", 1, "serving", 2.0)]]  # fmt: skip
    assert reload(store, monkeypatch, looks, timeout_s=60.0) == ["a: v2"]
    assert declared(store) == (1, False)


def test_a_node_that_its_watchdog_ends_has_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = (NodeEnd("a", "the thread `reload` hangs", 2.0),)
    with pytest.raises(NotTaken, match="the thread `reload` hangs"):
        reload(store, monkeypatch, [[node("a", 1, "loading")], []], ends, timeout_s=60.0)
    assert declared(store) == (2, True)


def test_a_node_that_stops_before_it_loads_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like one that is scaled away."""
    other = node("b", 1, "serving")
    assert reload(store, monkeypatch, [[node("a", 0, "serving"), other], [other]]) == ["b: v2"]
    assert declared(store) == (1, False)


def test_a_node_that_still_loads_keeps_the_declaration(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotTaken, match="no answer yet from a; they will load it"):
        reload(store, monkeypatch, [[node("a", 1, "loading")]])
    assert declared(store) == (1, False)
