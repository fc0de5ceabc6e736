"""The other living nodes, as each says a few times a second: the seconds of its work in hand, and its rates.

They say so in one hash of Redis. A node that has said nothing new for `SILENT_S` counts as gone; that is judged by this
node's clock. Without Redis a node has no peers, and takes as much as its slots allow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from producers.wire.publisher import Publisher, as_unavailable
from producers.wire.queues import LOADS, read
from workers.batching.planning.work_seconds import Amount, Seconds, WorkRate
from workers.batching.planning.work_sharing import Peer

#: Seconds between a node's announcements of its work, and of silence after which it counts as gone.
EXCHANGE_EVERY_S = 0.25
SILENT_S = 1.5

#: Seconds after which a silent node is removed from the hash, and the hash after the last node.
FORGOTTEN_S = 30.0


class ModelWork(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a node: its rate, and the work of a usual envelope there; None while it is not known."""

    rate: WorkRate | None = None
    usual: Amount | None = None


class NodeWork(msgspec.Struct, frozen=True, kw_only=True):
    """The work of a node: a number that grows, the seconds in hand, and the models that it serves."""

    number: int
    ahead_s: Seconds = 0.0
    models: dict[str, ModelWork] = {}


class Peers:
    """The living peers. `exchange` is called by a single thread; the rest by any."""

    def __init__(self, publisher: Publisher, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._publisher = publisher
        self._name = name
        self._clock = clock
        self._number = time.time_ns()  # grows also over restarts
        self._heard: dict[str, tuple[NodeWork, float]] = {}

    def exchange(self, ahead_s: float, models: Mapping[str, ModelWork]) -> None:
        """Announce this node's work and hear that of the others. Raises BrokerUnavailable or Overloaded."""
        self._number += 1
        own = NodeWork(number=self._number, ahead_s=ahead_s, models=dict(models))
        redis = self._publisher.redis
        with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
            pipeline.hset(LOADS, self._name, msgspec.json.encode(own))
            pipeline.expire(LOADS, int(FORGOTTEN_S))
            pipeline.hgetall(LOADS)
            said = pipeline.execute()[-1]
        self.hear(said)
        if gone := [name for name, (_, at) in self._heard.items() if self._clock() - at > FORGOTTEN_S]:
            with as_unavailable(redis):
                redis.hdel(LOADS, *gone)
            self._heard = {name: heard for name, heard in self._heard.items() if name not in gone}

    def hear(self, said: Mapping[Any, bytes]) -> None:
        """Note the announcements of all nodes."""
        now, heard = self._clock(), {}
        for name, work in ((key.decode(errors="replace"), read(value, NodeWork)) for key, value in said.items()):
            if work is None or name == self._name:
                continue
            before = self._heard.get(name)
            # the first words that are heard may be those of a node that is gone
            at = before[1] if before and before[0].number == work.number else now if before else now - SILENT_S
            heard[name] = (work, at)
        self._heard = heard

    def leave(self) -> None:
        """Say that this node is gone. Raises BrokerUnavailable or Overloaded."""
        with as_unavailable(self._publisher.redis):
            self._publisher.redis.hdel(LOADS, self._name)

    def living(self) -> list[NodeWork]:
        """Return the work of the living peers."""
        now = self._clock()
        return [work for work, at in list(self._heard.values()) if now - at < SILENT_S]

    def serve(self, model: str) -> bool:
        """Return whether a living peer serves a model."""
        return any(model in work.models for work in self.living())

    def usual(self, model: str) -> Amount | None:
        """Return the work of a usual envelope of a model at a peer; None if none has said."""
        said = [work.models[model].usual for work in self.living() if model in work.models]
        return next((usual for usual in said if usual is not None), None)

    def of(self, model: str, envelope: Amount, own: WorkRate) -> Sequence[Peer]:
        """Return the peers that serve a model, with their seconds for an envelope.

        A peer that has not computed any yet counts as this node, with its `own` rate: a node that joins gets work.
        """
        found = [(work.ahead_s, work.models[model].rate) for work in self.living() if model in work.models]
        return [Peer(ahead_s, (rate or own).seconds(envelope)) for ahead_s, rate in found]
