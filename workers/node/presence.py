"""What each node of the fleet serves at the moment, for operators: a note in Redis that runs out with its node."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from producers.wire.publisher import Publisher, as_unavailable

#: How often a node says that it is there, and after how many seconds of silence it is not.
TELL_EVERY_S = 2.0
GONE_AFTER_S = 10

_NODES = "argosy.nodes"


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """A model at one node. `generation` counts its declarations (0: none); one that `failed` goes on with `revision`."""

    revision: str
    generation: int = 0
    state: Literal["serving", "loading", "failed"] = "serving"
    error: str = ""


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """A node: its models by name, which of them are in memory, what they take there, how often models came and went."""

    name: str
    device: str
    models: dict[str, ModelState]
    loaded: list[str] = []
    resident_bytes: int = 0
    budget_bytes: int = 0
    loads: int = 0
    unloads: int = 0

    def served(self, model: str) -> str:
        """A model's revision, and what else is to be said of it, in a line."""
        state = self.models[model]
        said = [state.revision]
        if model not in self.loaded:
            said.append("not loaded")
        if state.state == "loading":
            said.append("another is being loaded")
        if state.state == "failed":
            said.append(f"another could not be loaded: {state.error}")
        return ", ".join(said)

    def shown(self) -> dict[str, Any]:
        """What Flower shows of it."""
        memory = {"bytes": self.resident_bytes, "budget": self.budget_bytes, "loads": self.loads}
        models = {name: self.served(name) for name in self.models}
        return {"models": models, "memory": memory} if self.budget_bytes else {"models": models}


def tell(publisher: Publisher, state: NodeState) -> None:
    """Say what a node serves. Raises BrokerUnavailable."""
    with as_unavailable(publisher.redis), publisher.redis.pipeline(transaction=False) as pipeline:
        pipeline.sadd(_NODES, state.name)
        pipeline.set(_key(state.name), msgspec.json.encode(state), ex=GONE_AFTER_S)
        pipeline.execute()


def leave(publisher: Publisher, name: str) -> None:
    """Say that a node is no more. Raises BrokerUnavailable."""
    with as_unavailable(publisher.redis), publisher.redis.pipeline(transaction=False) as pipeline:
        pipeline.srem(_NODES, name)
        pipeline.delete(_key(name))
        pipeline.execute()


def nodes(publisher: Publisher) -> list[NodeState]:
    """Return the nodes that are there, by name. Raises BrokerUnavailable."""
    redis = publisher.redis
    with as_unavailable(redis):
        names = sorted(name.decode() if isinstance(name, bytes) else name for name in redis.smembers(_NODES))
        found = redis.mget([_key(name) for name in names]) if names else []
        if gone := [name for name, said in zip(names, found, strict=True) if said is None]:
            redis.srem(_NODES, *gone)
    return [msgspec.json.decode(said, type=NodeState) for said in found if said is not None]


def _key(name: str) -> str:
    return f"argosy.node.{name}"
