"""What all parts of the forwarder share: the fleet of the site, its settings, its clock, and a bell."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, TypeVar

from producers.client.async_client import AsyncClient
from producers.edge.departure import Roots
from producers.edge.site_clock import SiteClock
from producers.wire.edge.edge_settings import EdgeSettings
from producers.wire.messages import Item, stored_envelope
from producers.wire.publisher import Publisher
from results_store.store import Store

T = TypeVar("T")

#: Seconds for which an envelope is leased to the forwarder, and between two renewals.
LEASE_S = 60.0


class SiteClient(AsyncClient):
    """A client for which no limits of tenants hold: they have admitted the items of the cascade before.

    An item that waits for the forwarder is in flight. Held against the limit once more, it would wait for itself.
    """

    _charges: ClassVar[bool] = False


@dataclass(slots=True, kw_only=True)
class Site:
    """A site as its forwarder sees it.

    `client` submits to the site's own models: its catalogue has no cascade. `rings` wakes the site's turn, `sends` the
    sender. `counted` is kept in the store for `argosy edge status`. `centre_s` is the time that the centre
    took for recent batches.
    """

    settings: EdgeSettings
    store: Store
    client: SiteClient
    publisher: Publisher
    clock: SiteClock
    roots: Roots
    drop_inputs: bool = False
    rings: asyncio.Event = field(default_factory=asyncio.Event)
    sends: asyncio.Event = field(default_factory=asyncio.Event)
    counted: Counter[str] = field(default_factory=Counter)
    link_state: str = "not used yet"
    centre_s: float = 0.0

    @property
    def worker(self) -> str:
        """The name under which it holds envelopes: the same after a restart, so that it has its leases still."""
        return f"edge-{self.settings.site}"

    @property
    def is_open(self) -> bool:
        """Whether something may be sent to the centre at this time of the day."""
        return self.settings.sends_at(datetime.now(UTC).astimezone().time())

    async def ask(self, question: Callable[[Store], T]) -> T:
        """Return `question(store)`, called in a thread."""
        return await asyncio.to_thread(question, self.store)

    async def stored(self, envelope: str) -> dict[int, Item]:
        """Return the items of an envelope by their numbers; empty if its inputs are no longer stored."""
        found = await self.ask(lambda store: store.inputs([envelope]))
        if envelope not in found:
            return {}
        items = await asyncio.to_thread(lambda: stored_envelope(*found[envelope])[0].items)
        return {item.seq: item for item in items}


async def heard(bell: asyncio.Event, timeout_s: float) -> None:
    """Wait until the bell rings, and silence it; at most so long."""
    try:
        async with asyncio.timeout(timeout_s):
            await bell.wait()
    except TimeoutError:
        pass
    bell.clear()
