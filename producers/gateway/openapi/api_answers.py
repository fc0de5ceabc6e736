"""The answers of the routes under /api, as OpenAPI describes them. Rows of the store have their records' fields."""

from __future__ import annotations

from typing import Any

from producers.gateway.openapi.schema_of import object_of, schema_of
from producers.wire.edge.told_sites import ToldSite
from results_store.gateway.api_keys import ROLES, ApiKey
from results_store.records import Batch, Depth, JobStatus, Pause, Result, Tenant
from results_store.sql.auditing.audit_log import AuditEntry
from results_store.sql.flight import RecordedDay
from results_store.sql.waiting.schedules import Schedule, ScheduleRun

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_TIME = {"type": "number", "description": "Seconds since 1970."}
_OBJECT = {"type": "object"}
_FLAG = {"type": "boolean"}
_PRIORITY = {"anyOf": [{"enum": ["interactive", "standard", "bulk"]}, {"type": "integer"}]}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _row(kind: type, *without: str) -> dict[str, Any]:
    """Return the properties of a record."""
    found: dict[str, Any] = schema_of(kind)["properties"]
    return {name: schema for name, schema in found.items() if name not in without}


_STATES = {"enum": ["waiting", "running", "finished", "empty", "cancelling", "cancelled"]}
_PROGRESS = {"priority": _PRIORITY, "done": _COUNT, "finished": {"type": "boolean"}, "state": _STATES}

JOB = object_of({**_row(JobStatus), **_PROGRESS})
REJECTED = object_of({"seq": _or_null(_COUNT), "key": _or_null(_TEXT), "error": _TEXT})
ACCEPTED_JOB = object_of({**JOB["properties"], "rejected": _list(REJECTED), "rejected_count": _COUNT})
_WEBHOOK = object_of(
    {"host": _TEXT, "state": {"enum": ["waiting", "retrying", "delivered", "given up"]}, "attempts": _COUNT}
    | {"attempted_at": _or_null(_TIME), "status": _or_null({"type": "integer"}), "error": _or_null(_TEXT)}
)
ONE_JOB = object_of(JOB["properties"], {"webhook": _WEBHOOK})
JOBS = object_of({"jobs": _list(JOB), "next": _or_null(_TEXT)})

RESULT = object_of(_row(Result, "vector"))
RESULTS = object_of({"results": _list(RESULT)})
ITEM = object_of({"id": _TEXT, "done": {"type": "boolean"}, "results": _list(RESULT)}, {"paused": _TEXT})

KEPT_ITEM = object_of(
    {"seq": _COUNT, "key": _or_null(_TEXT), "input": object_of({"form": _TEXT}), "results": _list(RESULT)},
    {"batches": _OBJECT},
)
KEPT_ITEMS = object_of({"items": _list(KEPT_ITEM), "next": _or_null(_COUNT)})

#: The models that a job waits for.
WAITING = object_of({"models": _list(_TEXT)} | dict.fromkeys(("unserved", "paused", "postponed"), _or_null(_TEXT)))

CALLER = object_of(
    {"tenant": _TEXT, "role": {"enum": list(ROLES)}} | dict.fromkeys(("operator", "all_tenants", "keys"), _FLAG)
)
TASK = object_of(dict.fromkeys(("name", "kind", "model", "input", "summary"), _TEXT) | {"params": _OBJECT})
TASKS = object_of({"tasks": _list(TASK)})
FAILURES = object_of({"failures": _list(RESULT)})
LETTER = object_of(
    dict.fromkeys(("id", "job", "model"), _TEXT)
    | {"priority": {"type": "integer"}, "attempts": _COUNT, "worker": _or_null(_TEXT), "error": {}}
    | {"created_at": _TIME, "finished_at": _or_null(_TIME), "items": _list(_OBJECT), "failures": _list(RESULT)}
)
DEAD = object_of({"dead": _list(LETTER)}, {"refused": _or_null(_list(_OBJECT))})
REPLAYED = object_of({"envelopes": _COUNT, "results": _COUNT})
FLEET = object_of({"at": _TIME, "depth": _list(object_of(_row(Depth))), "batches": _list(object_of(_row(Batch)))})
HISTORY = object_of({"days": _list(object_of({"day": _TEXT, **_row(RecordedDay)}))})
AUDIT = object_of({"entries": _list(object_of(_row(AuditEntry))), "next": _or_null(_TEXT)})
_KEY = object_of(_row(ApiKey, "secret_hash"))
KEYS = object_of({"keys": _list(_KEY)})
MADE_KEY = object_of({**_KEY["properties"], "key": _TEXT})
TENANTS = object_of({"tenants": _list(object_of({**_row(Tenant), "in_flight": _COUNT}))})
PAUSES = object_of({"pauses": _list(object_of(_row(Pause)))})
_RUN = object_of(_row(ScheduleRun))
_SCHEDULE = object_of(
    _row(Schedule, "submission")
    | {"submission": _or_null(_OBJECT), "last_run": _or_null(_RUN), "unread": _or_null(_TEXT)}
)
SCHEDULES = object_of({"schedules": _list(_SCHEDULE)})
SCHEDULE_RUNS = object_of({"runs": _list(_RUN)})
_SHARES: dict[str, Any] = dict.fromkeys(("share_sent", "agreement"), _or_null({"type": "number"}))
SITE = object_of(_row(ToldSite) | {"away": _FLAG} | _SHARES)
SITES = object_of({"sites": _list(SITE)})
ACTIVITY = object_of(
    {"at": _TIME, "batches": _OBJECT, "workers": _or_null(_list(_OBJECT))}
    | {name: {"type": "number"} for name in ("window_s", "covered_s")}
    | {name: _list(_OBJECT) for name in ("queue", "models", "devices", "recent", "pauses")}
)
