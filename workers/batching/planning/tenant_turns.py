"""Whose turn it is: between priorities by what they are owed of the device's time, between tenants by their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

#: How much device time a priority may have had beyond its share before that no longer counts against it: what it
#: had while nobody more urgent waited was nobody's loss.
MOST_AHEAD_S = 0.05

#: Virtual times kept before those that tell nothing are looked for.
MOST_PARTIES = 1000

Party: TypeAlias = tuple[int, str]  # priority, tenant


@dataclass(frozen=True, slots=True)
class Charge:
    """What a batch means for the turns: the priority and the tenant that lead it, the shares of the priorities that wait
    below the most urgent one meanwhile, and who wanted its rows, as parts of 1.
    """

    leader: int
    tenant: str
    shares: Mapping[int, float]
    parts: Mapping[Party, float] = field(default_factory=dict)


class Turns:
    """Not thread-safe. Times are seconds on the device.

    While a priority waits below a more urgent one, every batch earns it its share of the batch's time, and the whole of a
    batch that it leads itself is taken off: it is owed what is left. Tenants of one priority have virtual times, their
    device time divided by their weight, and the one with the least has the turn; one that comes back after an absence
    starts where the others are (start-time fair queueing: Goyal, Vin and Cheng 1996).
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(weights or {})
        self._owed: dict[int, float] = {}
        self._spent: dict[Party, float] = {}  # virtual times
        self._now: dict[int, float] = {}  # by priority: the virtual time of whom served last

    def owed_s(self, priority: int) -> float:
        return self._owed.get(priority, 0.0)

    def next_tenant(self, priority: int, tenants: Iterable[str]) -> str:
        """Return the tenant of a priority whose turn it is; of equals, the first."""
        return min(tenants, key=lambda tenant: self._virtual(priority, tenant))

    def lead(self, charge: Charge, seconds: float) -> None:
        """Book a batch that is handed to the device, of so many seconds as far as can be told."""
        self._now[charge.leader] = self._virtual(charge.leader, charge.tenant)
        self._book(charge, seconds)

    def correct(self, charge: Charge, seconds: float) -> None:
        """Book how many seconds more than said a batch took (or less, if negative)."""
        self._book(charge, seconds)

    def _book(self, charge: Charge, seconds: float) -> None:
        for priority, share in charge.shares.items():
            self._owed[priority] = self._owed.get(priority, 0.0) + share * seconds
        before = self._owed.get(charge.leader, 0.0)
        # who has no more urgent work beside it takes nothing from anybody
        least = -math.inf if charge.leader in charge.shares else min(before, -MOST_AHEAD_S)
        self._owed[charge.leader] = max(before - seconds, least)
        for (priority, tenant), part in charge.parts.items():
            spent = self._virtual(priority, tenant) + part * seconds / self.weights.get(tenant, 1.0)
            self._spent[priority, tenant] = spent
        if len(self._spent) > MOST_PARTIES:
            self._forget()

    def _virtual(self, priority: int, tenant: str) -> float:
        return max(self._spent.get((priority, tenant), 0.0), self._now.get(priority, 0.0))

    def _forget(self) -> None:
        """Drop the tenants that are level with the last one served: they are like new ones."""
        self._spent = {party: spent for party, spent in self._spent.items() if spent > self._now.get(party[0], 0.0)}
