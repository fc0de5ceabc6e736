"""Turns: priorities take turns by the device time owed to them, tenants by their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

#: Device time beyond its share counts against a priority only up to this many seconds: the time that it
#: had while nothing more urgent waited cost nobody anything.
MOST_AHEAD_S = 0.05

#: This many virtual times are kept before those without information are dropped.
MOST_PARTIES = 1000

Party: TypeAlias = tuple[int, str]  # priority, tenant


@dataclass(frozen=True, slots=True)
class Charge:
    """The meaning of a batch for the turns: its leading priority and tenant, the shares of the priorities that waited
    below the most urgent one, and the parts (of 1) of each priority and tenant in its rows.
    """

    leader: int
    tenant: str
    shares: Mapping[int, float]
    parts: Mapping[Party, float] = field(default_factory=dict)


class Turns:
    """Not thread-safe. Times are seconds on the device.

    While a priority waits below a more urgent one, every batch earns it its share of the batch's time, and a batch that
    it leads costs it the whole time; the difference is owed to it. Tenants of a priority have virtual times, that is,
    device time divided by weight; the tenant with the least has the turn. A tenant that returns after an absence starts
    at the others' time (start-time fair queueing: Goyal, Vin and Cheng 1996).
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(weights or {})
        self._owed: dict[int, float] = {}
        self._spent: dict[Party, float] = {}  # virtual times
        self._now: dict[int, float] = {}  # by priority: the virtual time of the tenant served last

    def owed_s(self, priority: int) -> float:
        return self._owed.get(priority, 0.0)

    def next_tenant(self, priority: int, tenants: Iterable[str]) -> str:
        """Return the tenant of a priority whose turn it is; of equals, the first."""
        return min(tenants, key=lambda tenant: self._virtual(priority, tenant))

    def lead(self, charge: Charge, seconds: float) -> None:
        """Book a batch handed to the device, with its predicted seconds."""
        self._now[charge.leader] = self._virtual(charge.leader, charge.tenant)
        self._book(charge, seconds)

    def correct(self, charge: Charge, seconds: float) -> None:
        """Book the seconds by which a batch took longer than predicted (negative if shorter)."""
        self._book(charge, seconds)

    def _book(self, charge: Charge, seconds: float) -> None:
        for priority, share in charge.shares.items():
            self._owed[priority] = self._owed.get(priority, 0.0) + share * seconds
        before = self._owed.get(charge.leader, 0.0)
        # without more urgent work beside it, a priority takes time from nobody
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
        """Drop the tenants that are level with the last one served: they are like new tenants."""
        self._spent = {party: spent for party, spent in self._spent.items() if spent > self._now.get(party[0], 0.0)}
