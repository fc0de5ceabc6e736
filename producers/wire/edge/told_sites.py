"""The reports of sites to their centre: counts, models and versions, but no input, key or name of a site's job."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import RedisError

from producers.wire.errors import ArgosyError
from producers.wire.queues import read

if TYPE_CHECKING:
    from redis import Redis

#: The hash in Redis with what each site told last, by tenant and name.
SITES = "argosy.sites"

#: The interval at which a site tells, and the time after which one that tells nothing counts as away.
TELL_EVERY_S, AWAY_AFTER_S = 60.0, 180.0

#: A site that told nothing for so long is forgotten.
FORGOTTEN_AFTER_S = 30 * 86400.0

#: The most sites of a tenant.
MOST_SITES = 100


class TooManySites(ArgosyError):
    """The tenant has as many sites as it may."""


class SiteReport(msgspec.Struct, frozen=True, kw_only=True):
    """A site's report: its `models` with their revisions, its `version` of Argosy, the items that wait there for the
    centre, and counts since it was set up.

    `by_site` counts marked items, too, which never leave; it is None unless the site has `tell_counts`. The others
    are about items that were sent on: answers `by_centre`, items `sent`, and those that both answered, which `agreed`
    or `differed`.
    """

    version: str = ""
    models: dict[str, str] = {}
    waiting: int = 0
    waiting_bytes: int = 0
    sent: int = 0
    by_centre: int = 0
    by_site: int | None = None
    agreed: int = 0
    differed: int = 0


class ToldSite(SiteReport, frozen=True, kw_only=True):
    """A site as it told last. `at` is the time there was at the centre (Unix)."""

    tenant: str
    site: str
    at: float

    @property
    def away(self) -> bool:
        """Whether the site has told nothing for a while."""
        return time.time() - self.at > AWAY_AFTER_S

    @property
    def share_sent(self) -> float | None:
        """The share that the centre answered; None if the site does not tell how many it answered itself."""
        answered = None if self.by_site is None else self.by_site + self.by_centre
        return self.by_centre / answered if answered else None

    @property
    def agreement(self) -> float | None:
        """The share of equal answers, of the items that site and centre both answered."""
        both = self.agreed + self.differed
        return self.agreed / both if both else None


def tell_site(redis: Redis, told: ToldSite) -> None:
    """Keep what a site told. Raises TooManySites or RedisError."""
    name = f"{told.tenant}/{told.site}"
    if not redis.hexists(SITES, name) and sum(one.tenant == told.tenant for one in told_sites(redis)) >= MOST_SITES:
        raise TooManySites(f"the tenant has {MOST_SITES} sites; those that tell nothing for 30 days are forgotten")
    redis.hset(SITES, name, msgspec.json.encode(told).decode())


def told_sites(redis: Redis) -> list[ToldSite]:
    """Return all sites by tenant and name, and forget those that told nothing for long. Raises RedisError."""
    found: Any = redis.hgetall(SITES)
    sites = {name: read(said, ToldSite) for name, said in found.items()}
    oldest = time.time() - FORGOTTEN_AFTER_S
    if gone := [name for name, one in sites.items() if one is None or one.at < oldest]:
        with suppress(RedisError):  # it only takes room
            redis.hdel(SITES, *gone)
    kept = (one for name, one in sites.items() if one is not None and name not in gone)
    return sorted(kept, key=lambda one: (one.tenant, one.site))
