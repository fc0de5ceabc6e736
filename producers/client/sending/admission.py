"""Admission of new work, by the seconds of work that are queued already and by the tenant's own limits.

While a client submits, it looks at the store at most once a second. A lone interactive item never waits for a look: it
is judged by the last look, and the next look is made afterwards. All clients together may therefore
exceed a limit by the work that they submit within a second. Only rates are counted exactly, in Redis, for the tenants
that have a rate.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from producers.client.group_commit import GroupCommit
from producers.client.sending.intake import CHUNK_ITEMS
from producers.wire.errors import ArgosyError, Overloaded, RateLimited
from producers.wire.messages import Priority
from producers.wire.publisher import as_unavailable
from results_store.errors import StoreUnavailable
from results_store.records import QueuedWork, Tenant

if TYPE_CHECKING:
    from redis import Redis

    from producers.client.fleet_link import FleetLink
    from producers.client.sending.orders import Order

log = logging.getLogger(__name__)

#: The greatest age of a look at the store.
LOOK_EVERY_S = 1.0

#: A tenant under its rate may take this many seconds of it at once.
BURST_S = 1.0

# The generic cell rate algorithm (ITU-T I.371, annex A). The key holds the time at which the tenant is level with its
# rate. A tenant less than a burst ahead of its rate may send an order of any size, and pays it off before the next
# order. ARGV: the rate, the burst, and the size of each order. Returns the number of orders that may go, and the wait
# for the next.
_RATE = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
local kept = redis.pcall('GET', KEYS[1])  -- a table (an error) if the key is of another type
local level = now
if type(kept) == 'string' and redis.call('PTTL', KEYS[1]) > 0 then  -- or another program wrote it
    level = math.max(tonumber(kept) or 0, now)
end
local taken = 0
for place = 3, #ARGV do
    if level - now > ARGV[2] + 0 then break end
    level = level + ARGV[place] / ARGV[1]
    taken = taken + 1
end
if taken > 0 then
    redis.call('SET', KEYS[1], string.format('%.6f', level), 'PX', math.ceil((level - now) * 1000) + 1000)
end
return {taken, string.format('%.6f', math.max(0, level - now - ARGV[2]))}
"""


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """The state of the store at a moment (monotonic)."""

    at: float = float("-inf")
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    in_flight: Mapping[str, int] = field(default_factory=dict)
    work: Sequence[QueuedWork] = ()

    def queued_s(self, models: Iterable[str], priority: Priority, tenant: Tenant) -> float:
        """Estimate the seconds that a tenant's new item would wait, in the longest of its queues.

        More urgent work goes first, also of other tenants. Within a priority tenants take turns: the wait is its own
        work, multiplied by the sum of the waiting tenants' weights over its own weight, but never more than all waiting
        work.
        """
        weights: defaultdict[int, float] = defaultdict(float)
        for known in self.tenants.values():
            weights[known.lane] += known.weight
        return max((self._of_model(model, priority, tenant.lane, weights) for model in models), default=0.0)

    def _of_model(self, model: str, priority: Priority, lane: int, weights: Mapping[int, float]) -> float:
        urgent = [work.seconds or 0.0 for work in self.work if work.model == model and work.priority < priority]
        lanes = {
            work.lane: work.seconds or 0.0 for work in self.work if work.model == model and work.priority == priority
        }
        own_weight = weights.get(lane) or 1.0
        others = sum(weights.get(other) or 1.0 for other in lanes if other != lane)
        by_turns = lanes.get(lane, 0.0) * (own_weight + others) / own_weight
        return sum(urgent) + min(by_turns, sum(lanes.values()))


class Admission:
    """Judge orders for a client, in its sending threads. A priority without `max_queued_s` has no limit."""

    def __init__(self, link: FleetLink) -> None:
        self._link = link
        self._look = QueueSnapshot()
        self._seen: set[str] = set()  # the tenants that this client submits for
        self._added: Counter[str] = Counter()  # items accepted since the last look
        self._lock = threading.Lock()
        self._away, self._away_at = "", float("-inf")  # the last time that the store was away
        self._looking: GroupCommit[QueueSnapshot] = GroupCommit("argosy admission", self._look_later, limit=64)

    def close(self) -> None:
        self._looking.close()

    def portion(self, tenant: str) -> int:
        """Return the number of items to send at once, so that the tenant's limits can admit them."""
        limits = self._look.tenants.get(tenant)
        if limits is None:
            return CHUNK_ITEMS
        rate = limits.max_items_per_s
        most = [CHUNK_ITEMS]
        if limits.max_in_flight is not None:
            most.append(limits.max_in_flight // 4)  # the other three quarters are in progress meanwhile
        if rate is not None:
            most.append(int(rate * BURST_S))
        return max(1, min(most))

    def judge(self, orders: Sequence[Order]) -> list[Overloaded | None]:
        """Return the refusal of each order; None admits the order and counts it.

        Raises BrokerUnavailable, and for durable orders StoreUnavailable: the commit would only wait as long again.
        """
        self._seen.update(order.tenant for order in orders)
        if time.monotonic() - self._look.at > LOOK_EVERY_S:
            if all(order.request.priority is Priority.INTERACTIVE for order in orders):
                self._looking.put(self._look)
            else:
                with nullcontext() if orders[0].durable else suppress(StoreUnavailable):
                    self.look()
        verdicts = [self._refusal(order) for order in orders]
        self._apply_rates(orders, verdicts)
        return verdicts

    def _look_later(self, _: object) -> None:
        with suppress(StoreUnavailable):
            self.look()

    def look(self, tenant: str | None = None) -> None:
        """Look at the store, also for a tenant that is new here. After an error, the last look stays valid.

        Raises StoreUnavailable.
        """
        if tenant is not None:
            self._seen.add(tenant)
        began = time.monotonic()
        with self._lock:
            if tenant is None and time.monotonic() - self._look.at <= LOOK_EVERY_S:
                return
            if self._away_at >= began:  # another thread has waited for the store meanwhile
                raise StoreUnavailable(self._away)
            added = dict(self._added)
            try:
                self._look = self._taken()
            except StoreUnavailable as error:
                self._away, self._away_at = str(error), time.monotonic()
                raise
            except ArgosyError as error:
                log.debug("admission uses an older look at the store: %s", error)
                return
            self._added.subtract(added)

    def _taken(self) -> QueueSnapshot:
        store = self._link.store
        at = time.monotonic()
        tenants = {tenant.name: tenant for tenant in store.tenants.every()}
        if not self._link.charges:
            tenants = {name: replace(one, max_items_per_s=None, max_in_flight=None) for name, one in tenants.items()}
        limited = [name for name in self._seen if name in tenants and tenants[name].max_in_flight is not None]
        in_flight = {name: store.tenants.in_flight(name) for name in limited}
        return QueueSnapshot(at, tenants, in_flight, store.flight.queued_work() if self._link.max_queued_s else ())

    def _refusal(self, order: Order) -> Overloaded | None:
        tenant = self._look.tenants.get(order.tenant, Tenant(name=order.tenant, lane=0))
        priority = order.request.priority
        most_s = self._link.max_queued_s.get(priority)
        if most_s is not None and (queued_s := self._look.queued_s(order.request.models, priority, tenant)) > most_s:
            return Overloaded(
                f"{queued_s:,.0f} s of work wait before new {priority.name.lower()} items, more than the "
                f"{most_s:,.0f} s that admission.max_queued_s allows; submit them later, or add workers",
                max(LOOK_EVERY_S, queued_s - most_s),
            )
        items = len(order.items)
        waiting = self._look.in_flight.get(order.tenant, 0) + self._added[order.tenant]
        if tenant.max_in_flight is not None and waiting and waiting + items > tenant.max_in_flight:
            return RateLimited(
                f"tenant {order.tenant!r} has about {waiting:,} items in flight and may have {tenant.max_in_flight:,}; "
                "submit again when results have arrived",
                LOOK_EVERY_S,
            )
        if order.durable:
            self._added[order.tenant] += items
        return None

    def _apply_rates(self, orders: Sequence[Order], verdicts: list[Overloaded | None]) -> None:
        """Refuse the orders over a tenant's rate. Its first orders go, as far as the rate allows."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, order in enumerate(orders):
            tenant = self._look.tenants.get(order.tenant)
            if verdicts[place] is None and tenant is not None and tenant.max_items_per_s is not None:
                places[order.tenant].append(place)
        for name, own in places.items():
            rate = self._look.tenants[name].max_items_per_s or 0.0
            sizes = [len(orders[place].items) for place in own]
            taken, wait_s = _take(self._link.publisher.redis, name, rate, sizes)
            for place in own[taken:]:
                if orders[place].durable:
                    self._added[name] -= len(orders[place].items)
                verdicts[place] = RateLimited(
                    f"tenant {name!r} may submit {rate:g} items a second; try again in {wait_s:.2f} s", wait_s
                )


def _take(redis: Redis, tenant: str, rate: float, sizes: Sequence[int]) -> tuple[int, float]:
    """Take the first of these sizes, as far as a tenant's rate allows. Return their number, and the wait for more."""
    with as_unavailable(redis):
        taken, wait_s = redis.eval(_RATE, 1, f"argosy.rate.{tenant}", rate, BURST_S, *sizes)
    return int(taken), float(wait_s)
