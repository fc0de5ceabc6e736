"""Groups of items that are submitted together. A group's id ends in its size, so that a remainder is noticed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from producers.wire.messages import new_id
from results_store.edge.edge_spool import EdgeItem


def groups(items: Iterable[EdgeItem], key: Callable[[EdgeItem], Hashable]) -> list[list[EdgeItem]]:
    """Return items with equal keys together, in their order."""
    found: dict[Hashable, list[EdgeItem]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def group_id(size: int) -> str:
    """Return a new id for a group of so many items. It says nothing of their contents."""
    return f"{new_id()}-{size}"


def is_whole(id_: str, items: Sequence[EdgeItem]) -> bool:
    """Return whether these are all items of the group, in their places."""
    return id_.rpartition("-")[2] == str(len(items)) and [item.place for item in items] == list(range(len(items)))
