"""Looks at the fleet for its metrics and for a scaler: rarely, one look at a time, and for all who ask."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial

from prometheus_client import CollectorRegistry

from producers.client.async_client import AsyncClient
from producers.gateway.metrics.batch_metrics import BatchMetrics
from producers.gateway.metrics.broker_look import BrokerLook, look_at_broker
from producers.gateway.metrics.fleet_gauges import FleetGauges, FleetLook
from producers.gateway.metrics.store_look import StoreLook, look_at_store
from producers.gateway.metrics.wanted_workers import WITHIN_S, Wanted, of_models, wanted_workers
from producers.wire.errors import ArgosyError, InvalidInput
from producers.wire.messages import Priority
from results_store.errors import StoreUnavailable

log = logging.getLogger(__name__)

#: A look is used for so many seconds, and for this many times its own duration.
FRESH_S, SHARE = 2.0, 20

#: Seconds for store and broker to answer; less than the ten that Prometheus waits for a scrape.
ANSWER_S = 4.0

_NOTHING = FleetLook(store=None, broker=None, costs={}, wanted=None, took_s=0.0)


class FleetMonitor:
    """The looks of an event loop, and their metrics in `registry`."""

    def __init__(self, client: AsyncClient, registry: CollectorRegistry) -> None:
        self._client = client
        self._batches = BatchMetrics(registry)
        self._look = _NOTHING
        self._due_at = float("-inf")  # monotonic
        self._one_at_a_time = asyncio.Lock()
        registry.register(FleetGauges(lambda: self._look))

    async def wanted(
        self, models: Collection[str] = (), within_s: Mapping[Priority, float] = WITHIN_S
    ) -> tuple[Wanted, int]:
        """Return the number of workers that these models need, or all, and the live workers that serve any of them.

        Raises StoreUnavailable, BrokerUnavailable, or InvalidInput for a model that nothing in the fleet names.
        """
        look = await self.look()
        if look.store is None or look.broker is None:
            raise StoreUnavailable("store or broker did not answer; keep the number of workers")
        known = {*await self._served_models(), *look.costs, *(one.model for one in look.store.demand)}
        known |= {name for node in look.broker.nodes for name in node.models}
        if unknown := sorted(set(models) - known):
            raise InvalidInput("model", f"{unknown[0]!r} is a model of no task", "name it as in fleet.toml")
        found = _wanted(look.store, look.broker, look.costs, models, within_s)
        live = sum(not models or not node.models.keys().isdisjoint(models) for node in look.broker.nodes)
        return found, live

    async def look(self) -> FleetLook:
        """Return a recent look. A part that does not answer is None."""
        async with self._one_at_a_time:
            if time.monotonic() >= self._due_at:
                began = time.monotonic()
                store = await self._ask_store()
                broker = await self._ask_broker(store)
                costs, took_s = self._batches.costs, time.monotonic() - began
                wanted = _wanted(store, broker, costs) if store and broker else None
                self._look = FleetLook(store=store, broker=broker, costs=costs, wanted=wanted, took_s=took_s)
                self._due_at = time.monotonic() + max(FRESH_S, SHARE * took_s)
            return self._look

    async def _ask_store(self) -> StoreLook | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                last = self._batches.last
                found = await self._client.ask(lambda store: look_at_store(store, last))
        except (ArgosyError, TimeoutError) as error:
            log.debug("metrics without the store: %s", error)
            return None
        self._batches.add(found)
        return found

    async def _ask_broker(self, store: StoreLook | None) -> BrokerLook | None:
        models = {*await self._served_models(), *self._batches.costs}
        models |= {one.model for one in store.demand} if store else set()
        question = partial(look_at_broker, models=models, lanes=store.lanes if store else ())
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._client.ask_broker(question)
        except (ArgosyError, TimeoutError) as error:
            log.debug("metrics without the broker: %s", error)
            return None

    async def _served_models(self) -> set[str]:
        with suppress(ArgosyError):
            return {task.model for task in (await self._client.catalogue()).tasks.values()}
        return set()


def _wanted(
    store: StoreLook,
    broker: BrokerLook,
    costs: Mapping[str, float],
    models: Collection[str] = (),
    within_s: Mapping[Priority, float] = WITHIN_S,
) -> Wanted:
    """Return the wanted workers. Messages beside the store's envelopes are of items that are not durable."""
    beside = broker.unacknowledged  # of whichever model: somebody has to deliver them again
    for (model, priority), count in broker.messages.items():
        if not models or model in models:
            own = [one for one in store.demand if (one.model, one.priority) == (model, priority)]
            beside += max(0, count - sum(one.envelopes - one.held for one in own))
    demand = of_models(store.demand, models)
    return wanted_workers(demand, costs, at=store.at, messages=beside, within_s=within_s, scheduled=store.scheduled)
