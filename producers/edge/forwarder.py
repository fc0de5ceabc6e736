"""The forwarder's process: ``python -m producers.edge.forwarder``, started and watched by `argosy edge`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from producers.edge.cascade_intake import CascadeIntake
from producers.edge.departure import Roots
from producers.edge.escalation import Escalation
from producers.edge.link import BatchRefused, Link, LinkDown
from producers.edge.site import LEASE_S, Site, SiteClient, heard
from producers.edge.site_clock import SiteClock
from producers.edge.site_turn import SiteTurn
from producers.wire.catalogue import Catalogue
from producers.wire.command_line import log_to_stderr
from producers.wire.connection import Connection
from producers.wire.edge.cascade_tasks import with_cascade
from producers.wire.edge.edge_settings import EDGE, EdgeSettings, edge_settings
from producers.wire.edge.told_sites import TELL_EVERY_S as REPORT_EVERY_S
from producers.wire.edge.told_sites import SiteReport
from producers.wire.errors import BrokerUnavailable, ConfigurationError, Overloaded, without_text
from producers.wire.fleet_file import beside, read_toml, typed
from producers.wire.live_nodes import NODES, node_key, served_models
from producers.wire.messages import COLUMNS
from producers.wire.publisher import Publisher, as_unavailable
from results_store.errors import StoreUnavailable
from results_store.store import Store

logger = logging.getLogger(__name__)

#: Seconds between two turns without a bell, between announcements, and after which a silent forwarder counts as gone.
TURN_S, TELL_EVERY_S, GONE_AFTER_S = 1.0, 2.0, 10

#: Seconds between two notes of the clock and the counters, and between two looks for lost jobs.
NOTE_EVERY_S, LOST_EVERY_S = 5.0, 60.0


def settings_of(config: str | Path) -> tuple[EdgeSettings, Catalogue]:
    """Return a site's settings and the catalogue of its own models. Raises ConfigurationError."""
    settings = edge_settings(config)
    if settings is None:
        raise ConfigurationError(f"{config}: edge: is missing; `argosy edge` needs this table (docs/edge.md)")
    own = Catalogue.from_toml(config)
    with_cascade(own, settings, where=str(config))
    return settings, own


async def forward(config: str | Path, where: Connection, stopping: asyncio.Event) -> None:
    """Serve a site's cascade until `stopping` is set. Raises ConfigurationError."""
    settings, own = settings_of(config)
    key = settings.key(os.environ)
    folders = typed(read_toml(config).get("limits", {}).get("allowed_roots", ()), tuple[str, ...], f"{config}: limits")
    roots = Roots(tuple(str(beside(config, root)) for root in folders if root.strip()), own.limits.max_input_bytes)
    async with AsyncExitStack() as stack:
        store = stack.enter_context(Store(where.store_url))
        publisher = stack.enter_context(closing(Publisher(where.broker_url, where.look_up)))
        client = await stack.enter_async_context(SiteClient(where.broker_url, where.store_url, catalogue=own))
        link = await stack.enter_async_context(Link(settings, key))
        site = Site(
            settings=settings,
            store=store,
            client=client,
            publisher=publisher,
            clock=SiteClock(store.edge.noted("clock")),
            roots=roots,
            drop_inputs=bool(read_toml(config).get("worker", {}).get("drop_inputs", False)),
            counted=Counter(store.edge.noted("status").get("counted", {})),
        )
        await _serve(site, link, stopping)


async def _serve(site: Site, link: Link, stopping: asyncio.Event) -> None:
    turn = SiteTurn(site)
    duties = {
        "intake": CascadeIntake(site).run,
        "escalation": Escalation(site, link).run,
        "turns": lambda: _turns(site, turn),
        "notices": lambda: _notices(site),
        "leases": lambda: _every(LEASE_S / 4, lambda: _renew(site)),
        "presence": lambda: _every(TELL_EVERY_S, lambda: asyncio.to_thread(_tell, site)),
        "cancellations": lambda: _every(TURN_S, turn.cancelled),
        "reports": lambda: _every(REPORT_EVERY_S, lambda: report(site, link)),
        "notes": lambda: _every(NOTE_EVERY_S, lambda: note(site, link)),
        "lost jobs": lambda: _every(LOST_EVERY_S, turn.lost),
    }
    tasks = [asyncio.create_task(_guarded(name, duty), name=name) for name, duty in duties.items()]
    logger.info("site %s serves %s", site.settings.site, ", ".join(site.settings.tasks))
    try:
        await stopping.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _end(site, link)


async def _end(site: Site, link: Link) -> None:
    """Keep the notes, and leave the fleet and the envelopes. Without a store, leases and presence run out."""
    await asyncio.to_thread(_leave, site)
    try:
        await note(site, link)
        await site.ask(lambda store: store.release(store.edge.envelopes(), worker=site.worker))
    except StoreUnavailable as error:
        logger.warning("%s", error)


async def _guarded(name: str, duty: Callable[[], Awaitable[object]]) -> None:
    """Run a duty until it is cancelled: after any error it begins again.

    An error's text may hold an input, and is not logged. A cancelled duty may raise an error in place of its
    cancellation, and does not begin again either.
    """
    while True:
        try:
            await duty()
        except (StoreUnavailable, BrokerUnavailable, Overloaded) as error:
            logger.warning("%s: %s", name, error)
        except Exception as error:  # noqa: BLE001 - the duty goes on; its state is in the store
            logger.error("%s: %s", name, without_text(error))  # noqa: TRY400 - a traceback would have the text
        if (task := asyncio.current_task()) and task.cancelling():
            return
        await asyncio.sleep(TURN_S)


async def _every(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await work()
        await asyncio.sleep(seconds)


async def _turns(site: Site, turn: SiteTurn) -> None:
    while True:
        if not await turn.turn():
            await heard(site.rings, TURN_S)


async def _notices(site: Site) -> None:
    """Ring the bell whenever something of the site's fleet is done."""
    redis = site.publisher.subscriber()

    def hear(listening: Any) -> bool:
        with as_unavailable(redis):
            return listening.get_message(timeout=TURN_S / 2) is not None

    with closing(redis), closing(_subscription(redis)) as listening:
        with as_unavailable(redis):
            await asyncio.to_thread(listening.psubscribe, "argosy.done.*")
        while True:
            if await asyncio.to_thread(hear, listening):
                site.rings.set()


def _subscription(redis: Any) -> Any:
    return redis.pubsub(ignore_subscribe_messages=True)


async def _renew(site: Site) -> None:
    await site.ask(lambda store: store.renew(store.edge.envelopes(), worker=site.worker, lease_s=LEASE_S))


def _tell(site: Site) -> None:
    """Announce that the cascade's model is served, as a node does."""
    node = {
        "name": site.worker,
        "device": "forwarder",
        "models": {EDGE: {"revision": "cascade"}},
        "loaded": [EDGE],
        "reads": COLUMNS,
        "at": time.time(),
    }
    redis = site.publisher.redis
    with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
        pipeline.sadd(NODES, site.worker)
        pipeline.set(node_key(site.worker), msgspec.json.encode(node), ex=GONE_AFTER_S)
        pipeline.execute()


def _leave(site: Site) -> None:
    redis = site.publisher.redis
    try:
        with as_unavailable(redis), redis.pipeline(transaction=False) as pipeline:
            pipeline.srem(NODES, site.worker)
            pipeline.delete(node_key(site.worker))
            pipeline.execute()
    except (BrokerUnavailable, Overloaded) as error:
        logger.warning("%s", error)


async def note(site: Site, link: Link) -> None:
    """Keep the clock and the counters for the next process, and for `argosy edge status`."""
    site.counted["sent_bytes"] += link.sent_bytes
    site.counted["received_bytes"] += link.received_bytes
    link.sent_bytes = link.received_bytes = 0
    status = {"site": site.settings.site, "link": site.link_state, "at": time.time(), "counted": dict(site.counted)}
    await site.ask(lambda store: store.edge.note("clock", site.clock.note()))
    await site.ask(lambda store: store.edge.note("status", status))


async def report(site: Site, link: Link) -> None:
    """Tell the centre how the site does, in the hours of the link: counts, models and versions alone."""
    if not site.is_open:
        return
    waiting, waiting_bytes = await site.ask(lambda store: store.edge.for_centre())
    models = await asyncio.to_thread(_models, site)
    counted = site.counted
    told = SiteReport(
        version=version("argosy"),
        models=models,
        waiting=waiting,
        waiting_bytes=waiting_bytes,
        sent=counted["sent"],
        by_centre=counted["by centre"],
        by_site=counted["by site"] if site.settings.tell_counts else None,
        agreed=counted["agreed"],
        differed=counted["differed"],
    )
    try:
        await link.tell(told)
    except (LinkDown, BatchRefused) as error:
        logger.debug("the centre was not told how the site does: %s", error)


def _models(site: Site) -> dict[str, str]:
    """Return the models that the site's own nodes serve, with their revisions."""
    with as_unavailable(site.publisher.redis):
        served = served_models(site.publisher.redis)
    return {name: ", ".join(sorted(revisions)) for name, revisions in served.items() if name != EDGE}


async def _run() -> None:
    where, stopping = Connection(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await forward(where.fleet_file or "fleet.toml", where, stopping)


def main() -> None:
    """Run the forwarder of the site whose addresses the environment has."""
    log_to_stderr()
    asyncio.run(_run())


if __name__ == "__main__":
    main()
