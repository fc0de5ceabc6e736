"""The live nodes of a fleet: each announces itself in a key of Redis that expires after the node stops."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from producers.wire.messages import REFERENCE, VERSION

if TYPE_CHECKING:
    from redis import Redis

#: The set of the names of all nodes, also of nodes that died.
NODES = "argosy.nodes"

#: Seconds between a publisher's looks at the nodes.
LOOK_EVERY_S = 2.0


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a node's announcement that producers read. The node `reads` messages up to this version."""

    reads: int = VERSION


def node_key(name: str) -> str:
    return f"argosy.node.{name}"


def announcements(redis: Redis) -> dict[str, bytes | None]:
    """Return the announcement of each node by its name, or None if the node died."""
    known: Any = redis.smembers(NODES)
    names = _names(known)
    found: Any = redis.mget([node_key(name) for name in names]) if names else []
    return dict(zip(names, found, strict=True))


class LiveNodes:
    """A publisher's knowledge of the live nodes, which it renews in the round trips of its messages. Thread-safe."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._due_at = -math.inf  # monotonic
        #: The latest version that every live node reads. Before the first look, the version that any node reads.
        self.read = VERSION

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due_at

    def look(self, redis: Redis) -> None:
        """Look now, in round trips of its own. Raises RedisError."""
        self._note(announcements(redis))

    def ask(self, pipeline: Any) -> list[str]:
        """Add a look at the nodes of the look before to a pipeline, and at the names of all; return the former."""
        names = self._names
        pipeline.smembers(NODES)
        pipeline.mget([NODES, *map(node_key, names)])  # the set's own place is empty: it is no text
        return names

    def hear(self, asked: Sequence[str], answers: Sequence[Any]) -> None:
        """Note the two answers to `ask`. A new node counts as an older one until the next look, which is due now."""
        names, (_, *found) = answers
        said = dict(zip(asked, found, strict=True))
        now = {name: said.get(name, b"{}") for name in _names(names)}
        self._note(now)
        if now.keys() - said.keys():
            self._due_at = -math.inf

    def _note(self, found: Mapping[str, bytes | None]) -> None:
        self.read = min((_reads(said) for said in found.values() if said is not None), default=REFERENCE)
        self._names = list(found)
        self._due_at = time.monotonic() + LOOK_EVERY_S


def _reads(said: bytes) -> int:
    try:
        return msgspec.json.decode(said, type=Announcement).reads
    except ValueError:  # msgspec's errors are ValueErrors too; nothing is known of this node
        return VERSION


def _names(known: Any) -> list[str]:
    return sorted(name.decode() if isinstance(name, bytes) else name for name in known)
