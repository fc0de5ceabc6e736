"""API keys: made, hashed, looked up, and cached for a moment.

A key is ``argosy-ID-SECRET``. The store has the ID and the SECRET's SHA-256. This hash is enough for a secret of 256
random bits, because no dictionary attack can reach it. Before a viewer's hash stands the role: a gateway of an older
version knows no viewers and would take them for members, but no secret has this text as its SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from cachetools import TTLCache

from producers.wire.connection import checked_tenant
from producers.wire.errors import ArgosyError, InvalidInput
from producers.wire.messages import is_id, new_id
from results_store.gateway.api_keys import ApiKey, Role

_PREFIX = "argosy"

#: Seconds for which a looked-up key is cached; after that a removed key is refused.
REMEMBERED_S = 10.0

#: Number of cached ids that are known, and of those that are not: guessing costs no memory, and nobody a known key.
REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The holder of a request's key, which has an id and a name. The request rate is counted by `key`."""

    tenant: str
    role: Role = "member"
    all_tenants: bool = False
    key: str = ""
    name: str = ""
    rate_per_s: float | None = None

    @property
    def changes(self) -> bool:
        """Whether the caller may submit, cancel and replay."""
        return self.role != "viewer"

    @property
    def operator(self) -> bool:
        """Whether the caller may change the whole fleet: pauses, keys, tenants, replays of all jobs."""
        return self.role == "operator"

    @property
    def scope(self) -> str | None:
        """The tenant whose rows the caller sees; None for all tenants."""
        return None if self.all_tenants else self.tenant

    def sees(self, tenant: str) -> bool:
        return self.all_tenants or tenant == self.tenant


def new_key(
    name: str,
    tenant: str,
    *,
    role: Role = "member",
    all_tenants: bool = False,
    expires_at: float | None = None,
    rate_per_s: float | None = None,
    created_at: float,
) -> tuple[str, ApiKey]:
    """Return a new key: the text for its holder, and the row for the store. An operator's key sees all tenants."""
    id_, secret = new_id(), secrets.token_hex(32)
    key = ApiKey(
        id=id_,
        name=name,
        tenant=tenant,
        role=role,
        all_tenants=all_tenants or role == "operator",
        secret_hash=_hash(secret, role),
        created_at=created_at,
        expires_at=expires_at,
        rate_per_s=rate_per_s,
    )
    return f"{_PREFIX}-{id_}-{secret}", key


def checked_rights(role: Role, tenant: str | None, *, all_tenants: bool) -> str:
    """Return the tenant of a new key. Raises InvalidInput: all tenants are said, never a default."""
    if all_tenants and role == "member":
        raise InvalidInput("all_tenants", "a member has one tenant", "make a viewer or an operator, or leave it out")
    if tenant is None and not all_tenants and role != "operator":
        remedy = "all_tenants" if role == "viewer" else "the role operator"
        raise InvalidInput("tenant", "is missing", f"name the tenant that owns the key's jobs, or give {remedy}")
    return checked_tenant(tenant or "")


class Refused(ArgosyError):
    """No key, or an invalid key; `str()` says which, with a remedy."""


class Keyring:
    """Looks up the holder of a key. For a single event loop."""

    def __init__(
        self, find: Callable[[str], Awaitable[ApiKey | None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find = find
        self._known: TTLCache[str, ApiKey] = TTLCache(REMEMBERED, REMEMBERED_S, clock)
        self._unknown: TTLCache[str, None] = TTLCache(REMEMBERED, REMEMBERED_S, clock)

    async def holder(self, authorization: str | None, now: float) -> Caller:
        """Return the holder of the key in an ``Authorization: Bearer`` header. Raises Refused or StoreUnavailable."""
        scheme, _, text = (authorization or "").partition(" ")
        if not text or scheme.lower() != "bearer":
            raise Refused("no API key; send the header `Authorization: Bearer KEY`")
        prefix, _, rest = text.strip().partition("-")
        id_, _, secret = rest.partition("-")
        key = await self._key(id_) if prefix == _PREFIX and secret else None
        if key is None or not hmac.compare_digest(key.secret_hash, _hash(secret, key.role)):
            raise Refused("the API key is not known here; ask the operator for a valid key")
        if key.expires_at is not None and key.expires_at <= now:
            raise Refused("the API key has expired; ask the operator for a new key")
        return Caller(
            tenant=key.tenant,
            role=key.role,
            all_tenants=key.all_tenants,
            key=key.id,
            name=key.name,
            rate_per_s=key.rate_per_s,
        )

    async def _key(self, id_: str) -> ApiKey | None:
        with suppress(KeyError):
            return self._known[id_]
        with suppress(KeyError):
            return self._unknown[id_]
        key = await self._find(id_) if is_id(id_) else None
        if key is None:
            self._unknown[id_] = None
        else:
            self._known[id_] = key
        return key


def _hash(secret: str, role: Role) -> str:
    hashed = hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
    return f"viewer:{hashed}" if role == "viewer" else hashed
