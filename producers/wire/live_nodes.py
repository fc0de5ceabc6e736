"""The live nodes of a fleet: each announces itself in a key of Redis that expires after the node stops."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from producers.wire.messages import COLUMNS, REFERENCE, VERSION
from producers.wire.queues import read

if TYPE_CHECKING:
    from redis import Redis

T = TypeVar("T")

#: The set of the names of all nodes, also of nodes that died.
NODES = "argosy.nodes"

#: Seconds between a publisher's looks at the nodes.
LOOK_EVERY_S = 2.0


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a node serves. It computes so many texts of an envelope in columns in a short time; 0: no such."""

    revision: str = ""
    in_columns: int = 0


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a node's announcement that producers read. The node `reads` messages up to this version."""

    reads: int = VERSION
    models: dict[str, ServedModel] = {}


class LiveModel(ServedModel, frozen=True, kw_only=True):
    """A model at a node. `state` is serving, loading or failed; a failed reload has an `error`."""

    state: str = "serving"
    error: str = ""


class LiveNode(Announcement, frozen=True, kw_only=True):
    """A node that is alive, with its models by name."""

    name: str = ""
    device: str = ""
    models: dict[str, LiveModel] = {}  # type: ignore[assignment]  # each is a ServedModel, and nobody changes it


class ScheduleReader(msgspec.Struct, frozen=True, kw_only=True):
    """A node's machine, and the places that it reads for schedules. No part of a `LiveNode`, which users are shown."""

    host: str = ""
    schedules: tuple[str, ...] = ()


def node_key(name: str) -> str:
    return f"argosy.node.{name}"


def announcements(redis: Redis) -> dict[str, bytes | None]:
    """Return the announcement of each node by its name, or None if the node died."""
    known: Any = redis.smembers(NODES)
    names = _names(known)
    found: Any = redis.mget([node_key(name) for name in names]) if names else []
    return dict(zip(names, found, strict=True))


def live_nodes(redis: Redis) -> list[LiveNode]:
    """Return the live nodes whose announcement can be read, by name. Raises RedisError."""
    return _announced(redis, LiveNode)


def schedule_readers(redis: Redis) -> list[ScheduleReader]:
    """Return the live nodes by the places that they read for schedules. Raises RedisError."""
    return _announced(redis, ScheduleReader)


def _announced(redis: Redis, kind: type[T]) -> list[T]:
    nodes = [read(said, kind) for said in announcements(redis).values() if said is not None]
    return [node for node in nodes if node is not None]


def served_models(redis: Redis) -> dict[str, set[str]]:
    """Return the revisions of each model that live nodes serve; empty if there is no node. Raises RedisError."""
    found: dict[str, set[str]] = {}
    for name, model in (served for node in live_nodes(redis) for served in node.models.items()):
        found.setdefault(name, set()).add(model.revision)
    return found


class LiveNodes:
    """A publisher's knowledge of the live nodes, which it renews in the round trips of its messages. Thread-safe."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._due_at = -math.inf  # monotonic
        #: The latest version that every live node reads. Before the first look, the version that any node reads.
        self.read = VERSION
        #: The models that live nodes serve. None: a node has not announced them yet, or there is no node.
        self.models: frozenset[str] | None = None
        #: The most items of an envelope in columns, by model: of the slowest node that serves it, if every node reads
        #: columns. While there is no node, as before.
        self.in_columns: Mapping[str, int] = {}

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
        nodes = [_read(said) for said in found.values() if said is not None]
        self.read = min((node.reads for node in nodes), default=REFERENCE)
        if nodes:
            self.in_columns = _in_columns(nodes) if self.read >= COLUMNS else {}
        known = all(node.models for node in nodes) and nodes
        self.models = frozenset(name for node in nodes for name in node.models) if known else None
        self._names = list(found)
        self._due_at = time.monotonic() + LOOK_EVERY_S


def _in_columns(nodes: Sequence[Announcement]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, model in (served for node in nodes for served in node.models.items()):
        found[name] = min(model.in_columns, found.get(name, model.in_columns))
    return found


def _read(said: bytes) -> Announcement:
    return read(said, Announcement) or Announcement()  # nothing is known of a node that says nonsense


def _names(known: Any) -> list[str]:
    return sorted(name.decode(errors="replace") if isinstance(name, bytes) else name for name in known)
