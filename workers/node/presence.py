"""The models that each node of the fleet serves, for operators: a key in Redis that expires after its node stops."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import msgspec

from producers.wire.errors import BrokerUnavailable
from producers.wire.live_nodes import NODES, announcements, node_key
from producers.wire.messages import VERSION
from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import queue_name, queue_of, read, waiting_messages

#: Seconds between a node's announcements, and seconds of silence after which it counts as gone.
TELL_EVERY_S = 2.0
GONE_AFTER_S = 10

#: Seconds for which operators see the reason for which a node ended itself.
ENDED_FOR_S = 600

ENDED = "argosy.ended"


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a node. `generation` counts its declarations (0: none). After `failed`, `revision` is still served.

    `in_columns`: see `producers.wire.live_nodes.ServedModel`.
    """

    revision: str
    generation: int = 0
    state: Literal["serving", "loading", "failed"] = "serving"
    error: str = ""
    in_columns: int = 0


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """A node: its models by name, the loaded ones, their memory, and the number of loads and unloads.

    On the machine `host` it may read these places for `schedules`.

    It reads messages up to the version `reads`, and takes them from the queues of its
    models in these `lanes`: see `producers.wire.live_nodes`. `at` is the time of the announcement by the node's clock,
    as Unix time. A node of an older version says neither lanes nor time. `figures` are for metrics: see
    `workers.node.monitoring`.
    """

    name: str
    device: str
    models: dict[str, ModelState]
    loaded: list[str] = []
    resident_bytes: int = 0
    budget_bytes: int = 0
    loads: int = 0
    unloads: int = 0
    reads: int = VERSION
    lanes: list[int] = []
    host: str = ""
    schedules: list[str] = []
    at: float = 0.0
    figures: dict[str, float] = {}

    @property
    def queues(self) -> list[str]:
        """The queues that the node is known to read."""
        return [queue_name(model, lane) for model in self.models for lane in self.lanes or [0]]

    def takes(self, queue: str) -> bool:
        """Return whether the node reads a queue. A node of an older version reads all lanes, and does not say which."""
        return queue in self.queues or (not self.lanes and queue.partition("/")[0] in self.queues)

    def served(self, model: str) -> str:
        """Return a model's revision and its state in a line."""
        state = self.models[model]
        said = [state.revision]
        if model not in self.loaded:
            said.append("not loaded")
        if state.state == "loading":
            said.append("another revision is loading")
        if state.state == "failed":
            said.append(f"another revision could not be loaded: {state.error}")
        return ", ".join(said)

    def shown(self) -> dict[str, Any]:
        """Return the node's models and memory for Flower."""
        memory = {"bytes": self.resident_bytes, "budget": self.budget_bytes, "loads": self.loads}
        models = {name: self.served(name) for name in self.models}
        return {"models": models, "memory": memory} if self.budget_bytes else {"models": models}


def tell(publisher: Publisher, state: NodeState) -> None:
    """Announce a node's models. Raises BrokerUnavailable or Overloaded."""
    with as_unavailable(publisher.redis), publisher.redis.pipeline(transaction=False) as pipeline:
        # a full Redis refuses the others, and keeps the earlier state
        pipeline.expire(node_key(state.name), GONE_AFTER_S)
        pipeline.sadd(NODES, state.name)
        pipeline.set(node_key(state.name), msgspec.json.encode(state), ex=GONE_AFTER_S)
        pipeline.execute()


def leave(publisher: Publisher, name: str) -> None:
    """Remove a node. Raises BrokerUnavailable or Overloaded."""
    with as_unavailable(publisher.redis), publisher.redis.pipeline(transaction=False) as pipeline:
        pipeline.srem(NODES, name)
        pipeline.delete(node_key(name))
        pipeline.execute()


def nodes(publisher: Publisher) -> list[NodeState]:
    """Return the live nodes, by name. Raises BrokerUnavailable."""
    redis = publisher.redis
    with as_unavailable(redis):
        found = announcements(redis)
    if gone := [name for name, said in found.items() if said is None]:
        with suppress(BrokerUnavailable), as_unavailable(redis):  # a read-only Redis can be looked at all the same
            redis.srem(NODES, *gone)
    said = [read(announced, NodeState) for announced in found.values() if announced is not None]
    return [state for state in said if state is not None]


def queues(publisher: Publisher) -> set[str]:
    """Return the queues that live nodes read, and the queues in which messages wait. Raises BrokerUnavailable."""
    own = {queue for node in nodes(publisher) for queue in node.queues}
    with as_unavailable(publisher.redis):
        return own | {queue_of(key) for key in waiting_messages(publisher.redis)}


class NodeEnd(msgspec.Struct, frozen=True):
    """The end of a node's process that its watchdog ended; `at` is Unix time."""

    name: str
    reason: str
    at: float


def tell_end(publisher: Publisher, end: NodeEnd) -> None:
    """Announce that a node ends itself. Raises BrokerUnavailable."""
    with as_unavailable(publisher.redis), publisher.redis.pipeline(transaction=False) as pipeline:
        pipeline.zadd(ENDED, {msgspec.json.encode(end): end.at})
        pipeline.zremrangebyscore(ENDED, "-inf", end.at - ENDED_FOR_S)
        pipeline.expire(ENDED, ENDED_FOR_S)
        pipeline.execute()
    leave(publisher, end.name)


def ends(publisher: Publisher, since: float) -> list[NodeEnd]:
    """Return the nodes that ended themselves since then, by time. Raises BrokerUnavailable."""
    found: Any
    with as_unavailable(publisher.redis):
        found = publisher.redis.zrangebyscore(ENDED, since, "+inf")
    return [end for said in found if (end := read(said, NodeEnd)) is not None]
