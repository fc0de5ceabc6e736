"""What an operator declares of a model holds for the whole fleet, in order, and is proven by who serves it."""

from __future__ import annotations

from results_store.store import Store

ONE = {"source": {"path": "one"}}
TWO = {"source": {"path": "two"}}


def test_a_worker_starts_with_what_is_proven(store: Store) -> None:
    """A declaration that nobody could load yet keeps no worker from starting: it takes the one before."""
    assert store.declarations.every() == {}
    first = store.declarations.declare("text", ONE, file_digest="f")
    assert (first.generation, first.established) == (1, None)
    store.declarations.prove(first)
    assert store.declarations.every()["text"].established == ONE
    second = store.declarations.declare("text", TWO)
    assert (second.generation, second.settings, second.established) == (2, TWO, ONE)
    third = store.declarations.declare("text", {"source": {"path": "three"}})
    assert third.established == ONE, "what was never proven is nothing to start with"


def test_taking_back_is_one_more_declaration(store: Store) -> None:
    """Those that took it already must see something new."""
    broken = store.declarations.declare("text", TWO)
    back = store.declarations.declare("text", broken.established, proven=True)
    assert (back.generation, back.established) == (2, None)


def test_an_old_proof_proves_nothing_new(store: Store) -> None:
    """A worker that was slow with one declaration says nothing of the next."""
    slow = store.declarations.declare("text", ONE)
    store.declarations.declare("text", TWO)
    store.declarations.prove(slow)
    assert not store.declarations.every()["text"].proven
    assert store.declarations.every()["text"].file_digest == ""


def test_schemas_are_kept_beside_declarations(store: Store) -> None:
    """A worker that describes a model declares nothing; a declaration keeps the description."""
    store.declarations.describe("own", {"input": {"type": "integer"}, "output": {}})
    [described] = store.declarations.every().values()
    assert (described.generation, described.settings, described.established) == (0, None, None)
    declared = store.declarations.declare("own", ONE)
    assert (declared.generation, declared.established) == (1, None)
    store.declarations.describe("own", {"input": {"type": "string"}, "output": {}})
    assert store.declarations.every()["own"].settings == ONE
    store.declarations.declare("other", TWO)
    assert store.declarations.schemas() == {"own": {"input": {"type": "string"}, "output": {}}}
