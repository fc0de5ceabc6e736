"""The messages to the batcher's thread, which all pass through one inbox, in order."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from workers.batching.planning.residence import Footprint
from workers.batching.roster import ServedModel
from workers.batching.work import Entry, Group
from workers.device.device_client import DeviceEvent
from workers.device.device_process import ModelToLoad


@dataclass(frozen=True, slots=True)
class Admit:
    """Load one more version of a model beside the others."""

    served: ServedModel
    wanted: ModelToLoad
    footprint: Footprint
    done: Future[None]


@dataclass(frozen=True, slots=True)
class Retire:
    """Retire a version: it gets no more items."""

    key: str
    done: Future[None]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel items."""

    jobs: frozenset[str] = frozenset()
    items: frozenset[tuple[str, int]] = frozenset()  # job, seq

    def concerns(self, entry: Entry) -> bool:
        return entry.job in self.jobs or (entry.job, entry.seq) in self.items


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Interrupt the entries of a group that have no outcome: also those that are `begun`, or only the others.

    The device's outputs for interrupted entries come too late.
    """

    group: Group
    begun: bool = True


@dataclass(frozen=True, slots=True)
class Weigh:
    """Set the tenants' weights."""

    weights: Mapping[str, float]


Message: TypeAlias = list[Entry] | DeviceEvent | Cancel | GiveBack | Weigh | Admit | Retire
