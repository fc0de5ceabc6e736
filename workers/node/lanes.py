"""Lanes: each tenant's queues, so that one tenant's million envelopes are not in front of another's two.

A tenant's row, with its lane, is in the store before anything of it is (`results_store.sql.tenants`), rows are never
deleted, and a node takes from every lane there is: those at its start, and new ones within `LOOK_EVERY_S` and the second
that Redis may hold a BRPOP. So nothing waits in a lane that nobody looks into.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from producers.wire.queues import queue_name
from results_store.store import Store

#: How often a node looks for new tenants and changed weights.
LOOK_EVERY_S = 1.0

#: A list of Redis may have a further slot of a worker while it has less than this many times what is free.
GREED = 4


def may_take(held: int, free: int) -> bool:
    """Say whether a list of Redis, of which a worker holds so many envelopes, may have one of its free slots.

    So one list alone leaves a fifth of the slots free, two leave a ninth: whoever comes next, of another tenant or more urgent,
    need not wait until an envelope is done, which takes as long as the longest of its items (dynamic thresholds:
    Choudhury and Hahne 1998).
    """
    return held < GREED * free


class Lanes:
    """What a node knows of its tenants. `look` from one thread; the rest from any."""

    def __init__(self, store: Store, models: Iterable[str]) -> None:
        self._store = store
        self._models = tuple(models)
        self._tenants = {"": 1.0}
        self._queues = {queue_name(model): 1.0 for model in self._models}
        self._followers: list[Callable[[], object]] = []

    @property
    def tenants(self) -> dict[str, float]:
        """The weight of each tenant."""
        return self._tenants

    @property
    def queues(self) -> list[str]:
        """Every queue to take envelopes from."""
        return list(self._queues)

    def weight(self, queue: str) -> float:
        """Return what a queue's lane weighs: as much as the tenants in it together."""
        return self._queues.get(queue, 1.0)

    def follow(self, looked: Callable[[], object]) -> None:
        """Have `looked` called after each look."""
        self._followers.append(looked)

    def look(self) -> None:
        """Read the tenants. Raises StoreUnavailable."""
        weights: defaultdict[int, float] = defaultdict(float)
        tenants = self._store.tenants.every()
        for tenant in tenants:
            weights[tenant.lane] += tenant.weight
        self._tenants = {tenant.name: tenant.weight for tenant in tenants}
        self._queues = {
            queue_name(model, lane): weight for lane, weight in sorted(weights.items()) for model in self._models
        }
        for looked in self._followers:
            looked()


class LaneTurns:
    """In which order Redis is asked for queues of one priority: the one with the least envelopes for its weight first.

    What kombu calls a queue order strategy. An envelope is at most about one micro-batch of work, so envelopes are counted. A queue that
    was empty for a while starts where the others are: it has earned nothing meanwhile (start-time fair queueing: Goyal, Vin
    and Cheng 1996). Between items, the batcher takes turns again, by their true cost.
    """

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._queues: list[str] = []
        self._taken: dict[str, float] = {}  # virtual time: envelopes taken, over weight
        self._now = 0.0  # that of the last queue served, when it was its turn

    def update(self, queues: Iterable[str]) -> None:
        """These are the queues from now on."""
        self._queues = list(queues)

    def consume(self, count: int) -> list[str]:
        """Return the queues, the one whose turn it is first."""
        return sorted(self._queues, key=self._virtual)[:count]

    def rotate(self, queue: str) -> str:
        """Take note that an envelope was taken from a queue."""
        self._now = self._virtual(queue)
        self._taken[queue] = self._now + 1.0 / self._weight(queue)
        self._queues.sort(key=queue.__eq__)  # of equals, it is the last
        return queue

    def _virtual(self, queue: str) -> float:
        return max(self._taken.get(queue, 0.0), self._now)


class TurnsOf:
    """Makes the turns of a node's lanes. As JSON, which it becomes with a worker's statistics (for Flower), it is its name."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def __call__(self) -> LaneTurns:
        return LaneTurns(self._lanes.weight)

    def __json__(self) -> str:
        return type(self).__name__
