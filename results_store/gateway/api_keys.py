"""The API keys of the gateway's callers. Only hashes of the secrets are stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy import RowMapping, delete, select

from results_store.sql.auditing.audit_log import Actor, note
from results_store.sql.columns import text
from results_store.sql.database import Database, Weight
from results_store.sql.result_rows import insert_new
from results_store.sql.schema import api_keys

#: What the holder of a key may do: only read; also submit, cancel and replay; also all that concerns the whole fleet.
Role: TypeAlias = Literal["viewer", "member", "operator"]

ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key. It sees its tenant, or `all_tenants`. Without `expires_at` it does not expire.

    Times are Unix seconds.
    """

    id: str
    name: str
    tenant: str
    role: Role
    all_tenants: bool
    secret_hash: str
    created_at: float
    expires_at: float | None = None
    rate_per_s: float | None = None


class ApiKeys:
    """The keys in the store, as `Store.keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: ApiKey, *, by: Actor | None = None) -> bool:
        """Add a key. Return False, without adding it, if its name exists."""
        row = {name: text(value) if isinstance(value, str) else value for name, value in asdict(key).items()}
        row["operator"] = key.role == "operator"  # for gateways of older versions
        with self._database.write(Weight.ACCEPTED) as connection:
            added = connection.execute(insert_new(connection, api_keys).values(row).returning(api_keys.c.id))
            if added.first() is None:
                return False
            rights = {"role": key.role, "tenant": key.tenant, "all_tenants": key.all_tenants or None}
            note(connection, by, "keys add", f"key:{key.name}", **rights, expires_at=key.expires_at)
            return True

    def all(self) -> list[ApiKey]:
        """Return all keys by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.name)).mappings()
            return [_key(row) for row in rows]

    def find(self, id_: str) -> ApiKey | None:
        """Return the key with this id."""
        with self._database.read() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == id_)).mappings().one_or_none()
        return None if row is None else _key(row)

    def remove(self, name: str, *, by: Actor | None = None) -> bool:
        """Remove the key with this name; return whether it existed."""
        with self._database.write(Weight.ACCEPTED) as connection:
            if not connection.execute(delete(api_keys).where(api_keys.c.name == text(name))).rowcount:
                return False
            note(connection, by, "keys remove", f"key:{name}")
            return True


def _key(row: RowMapping) -> ApiKey:
    """Return the key of a row. Older versions wrote whether a key is an operator's, and no role."""
    values: dict[str, Any] = dict(row)
    operator = values.pop("operator")
    if values["role"] is None:
        values |= {"role": "operator" if operator else "member", "all_tenants": operator}
    return ApiKey(**values)
