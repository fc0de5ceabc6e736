"""API keys: made, hashed, looked up, and remembered for a moment. A key is ``argosy-ID-SECRET``; the store has the ID and
the SECRET's SHA-256, which is enough for a secret of 256 random bits: there is no dictionary to try."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from cachetools import TTLCache

from producers.wire.errors import ArgosyError
from producers.wire.messages import is_id, new_id
from results_store.gateway.api_keys import ApiKey

_PREFIX = "argosy"

#: How long a looked-up key is believed: a removed one is refused after that.
REMEMBERED_S = 10.0

#: Ids remembered, known or not, so that guessing costs neither memory nor the store.
REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a request. An operator sees every tenant; `key` names whose rate it counts against."""

    tenant: str
    operator: bool = False
    key: str = ""
    rate_per_s: float | None = None

    @property
    def scope(self) -> str | None:
        """The tenant whose rows the caller sees; None for all."""
        return None if self.operator else self.tenant

    def sees(self, tenant: str) -> bool:
        return self.operator or tenant == self.tenant


def new_key(
    name: str,
    tenant: str,
    *,
    operator: bool = False,
    expires_at: float | None = None,
    rate_per_s: float | None = None,
    created_at: float,
) -> tuple[str, ApiKey]:
    """Return a new key as its holder has it, and as the store has it."""
    id_, secret = new_id(), secrets.token_hex(32)
    key = ApiKey(
        id=id_,
        name=name,
        tenant=tenant,
        operator=operator,
        secret_hash=_hash(secret),
        created_at=created_at,
        expires_at=expires_at,
        rate_per_s=rate_per_s,
    )
    return f"{_PREFIX}-{id_}-{secret}", key


class Refused(ArgosyError):
    """No key, or one that does not open; `str()` says which and what to do."""


class Keyring:
    """Tells who holds a key. For one event loop."""

    def __init__(
        self, find: Callable[[str], Awaitable[ApiKey | None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find = find
        self._known: TTLCache[str, ApiKey | None] = TTLCache(REMEMBERED, REMEMBERED_S, clock)

    async def holder(self, authorization: str | None, now: float) -> Caller:
        """Return who sent an ``Authorization: Bearer`` header. Raises Refused; StoreUnavailable."""
        scheme, _, text = (authorization or "").partition(" ")
        if not text or scheme.lower() != "bearer":
            raise Refused("no API key; send the header `Authorization: Bearer KEY`")
        prefix, _, rest = text.strip().partition("-")
        id_, _, secret = rest.partition("-")
        key = await self._key(id_) if prefix == _PREFIX and secret else None
        if key is None or not hmac.compare_digest(key.secret_hash, _hash(secret)):
            raise Refused("the API key is not known here; ask the operator for one")
        if key.expires_at is not None and key.expires_at <= now:
            raise Refused("the API key has expired; ask the operator for a new one")
        return Caller(tenant=key.tenant, operator=key.operator, key=key.id, rate_per_s=key.rate_per_s)

    async def _key(self, id_: str) -> ApiKey | None:
        with suppress(KeyError):
            return self._known[id_]
        key = self._known[id_] = await self._find(id_) if is_id(id_) else None
        return key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
