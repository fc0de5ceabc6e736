"""Lanes: each tenant has its own queues, so that one tenant's million envelopes do not delay another's two.

A tenant's row with its lane is in the store before any of its envelopes (`results_store.sql.tenants`), rows are never
deleted, and a node takes from every lane: known ones from its start, new ones within `LOOK_EVERY_S` plus the second of
a BRPOP. So no envelope waits in a lane without a reader.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from producers.wire.queues import queue_name
from results_store.store import Store

#: Seconds between looks for new tenants and changed weights.
LOOK_EVERY_S = 1.0

#: A Redis list gets another slot of a worker while it holds fewer envelopes than this many times the free slots.
GREED = 4


def may_take(held: int, free: int) -> bool:
    """Return whether a Redis list with `held` envelopes at this worker may take a `free` slot.

    So a single list leaves a fifth of the slots free, two leave a ninth. The next envelope, of another tenant or more
    urgent, need not wait for a running envelope, which takes as long as its longest item (dynamic thresholds: Choudhury
    and Hahne 1998).
    """
    return held < GREED * free


def may_take_more(held: int, free: int) -> int:
    """Return how many envelopes a Redis list may take after the next one."""
    return max(0, (GREED * (free - 1) - held - 1) // (GREED + 1))


class Lanes:
    """The tenants that a node knows. Call `look` from a single thread; the rest from any."""

    def __init__(self, store: Store, models: Iterable[str]) -> None:
        self._store = store
        self._models = tuple(models)
        self._tenants = {"": 1.0}
        self._queues = {queue_name(model): 1.0 for model in self._models}
        self._numbers = [0]
        self._followers: list[Callable[[], object]] = []

    @property
    def tenants(self) -> dict[str, float]:
        """The weight of each tenant."""
        return self._tenants

    @property
    def queues(self) -> list[str]:
        """Every queue that the node takes envelopes from."""
        return list(self._queues)

    @property
    def numbers(self) -> list[int]:
        """The lanes that the node takes envelopes from."""
        return self._numbers

    def weight(self, queue: str) -> float:
        """Return the weight of a queue's lane: the sum of its tenants' weights."""
        return self._queues.get(queue, 1.0)

    def follow(self, looked: Callable[[], object]) -> None:
        """Call `looked` after each look."""
        self._followers.append(looked)

    def look(self) -> None:
        """Read the tenants. Raises StoreUnavailable."""
        weights: defaultdict[int, float] = defaultdict(float)
        tenants = self._store.tenants.every()
        for tenant in tenants:
            weights[tenant.lane] += tenant.weight
        self._tenants = {tenant.name: tenant.weight for tenant in tenants}
        self._numbers = sorted(weights)
        self._queues = {
            queue_name(model, lane): weight for lane, weight in sorted(weights.items()) for model in self._models
        }
        for looked in self._followers:
            looked()


class LaneTurns:
    """The order in which Redis is polled for queues of a priority: fewest taken envelopes for its weight first.

    This is a queue order strategy of kombu. An envelope is at most about a micro-batch of work, so envelopes are
    counted. A queue that was empty for a while starts level with the others, without credit (start-time fair queueing:
    Goyal, Vin and Cheng 1996). For items, the batcher takes turns again, by their true cost.
    """

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._queues: list[str] = []
        self._taken: dict[str, float] = {}  # virtual time: envelopes taken, over weight
        self._now = 0.0  # virtual time of the last served queue, at its turn

    def update(self, queues: Iterable[str]) -> None:
        """Set the queues."""
        self._queues = list(queues)

    def consume(self, count: int) -> list[str]:
        """Return the queues, the next to be served first."""
        return sorted(self._queues, key=self._virtual)[:count]

    def rotate(self, queue: str) -> str:
        """Record that an envelope was taken from a queue."""
        self._now = self._virtual(queue)
        self._taken[queue] = self._now + 1.0 / self._weight(queue)
        self._queues.sort(key=queue.__eq__)  # among equal queues it comes last
        return queue

    def _virtual(self, queue: str) -> float:
        return max(self._taken.get(queue, 0.0), self._now)


class LaneTurnsFactory:
    """Makes the `LaneTurns` of a node. In JSON, for a worker's statistics in Flower, it becomes its class name."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def __call__(self) -> LaneTurns:
        return LaneTurns(self._lanes.weight)

    def __json__(self) -> str:
        return type(self).__name__
