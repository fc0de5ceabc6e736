"""The tables. `migrations/` builds them step by step; a test compares the two.

The reasons for this schema:

- Progress is five counters on the job, written in the transaction that inserts the results. Reading it costs
  one row, and the counters cannot disagree with the rows.
- A payload has a table of its own: an envelope's row is rewritten at every change of state, and neither
  database should copy megabytes of input to renew a lease.
- Results have no foreign keys, because each row would cost a lookup, and a result is only ever written for an
  envelope that the same store handed out by `claim`. Envelopes have no foreign key to their job, so that a purge
  can delete the job at once and its many rows later, in portions.
- SQLite keeps `results` as a rowid table. WITHOUT ROWID is 8 % faster for labels and 40 % slower for vectors,
  which then no longer fit beside the key in a page.
- Vectors are float32 bytes on both databases. pgvector's type fixes the dimension of a column, but this
  column holds every model's vectors; a table for nearest-neighbour search can be added beside it.
"""

from __future__ import annotations

import re

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB

#: The Alembic revision that this code reads and writes; `Store.open` checks it.
REVISION = "0020"

#: The oldest revision whose code works with this schema. Its processes run on, and may restart, during an upgrade.
COMPATIBLE = "0009"

#: The oldest revision whose code reads results in chunks. A database in which workers store chunks refuses older code.
CHUNKS = "0017"

#: Alembic's table: the database's revision.
VERSION_TABLE = "argosy_revision"

metadata = MetaData()

# The oldest revision whose code works with the database, `COMPATIBLE` of the code that migrated it. Up to 0009 this was
# Alembic's own table, and code of 0009 still expects its own revision here.
compatible = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))


def is_own(revision: str) -> bool:
    """Return whether a revision in `compatible` is Argosy's: the table has the name that all programs' Alembic uses."""
    return re.fullmatch(r"\d{4}", revision) is not None


Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

# Work without a tenant belongs to the tenant with the empty name, in lane 0. Rows are never deleted: see
# `results_store.sql.tenants`.
tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("lane", SmallInteger, nullable=False),
    Column("weight", Double, nullable=False, server_default="1"),
    Column("max_items_per_s", Double),
    Column("max_in_flight", BigInteger),
    Column("created_at", Double, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text),
    Column("priority", SmallInteger, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("cancelled_at", Double),
    Column("items", BigInteger, nullable=False, server_default="0"),
    Column("total", BigInteger, nullable=False, server_default="0"),
    Column("succeeded", BigInteger, nullable=False, server_default="0"),
    Column("failed", BigInteger, nullable=False, server_default="0"),
    Column("cancelled", BigInteger, nullable=False, server_default="0"),
    Column("expired", BigInteger, nullable=False, server_default="0"),
    Column("ttl_s", Double),
    Column("tenant", Text, nullable=False, server_default=literal_column("''")),
    Column("progressed_at", Double),  # of its newest result; null for a job that an older version wrote
    Column("pipeline", Json),  # its steps, for `Follow`; null for most jobs
    # with an idempotency key only, both texts of the producer: its tasks and parameters, and "rows:digest" of its rows
    Column("request", Text),
    Column("fingerprint", Text),
    Index("jobs_newest", "created_at", "id"),
    Index("jobs_of_tenant", "tenant", "created_at", "id"),
)

HAS_TTL = jobs.c.ttl_s != None  # noqa: E711 - SQL

RUNNING = jobs.c.finished_at == None  # noqa: E711 - SQL

Index("jobs_running", jobs.c.tenant, sqlite_where=RUNNING, postgresql_where=RUNNING)
Index("jobs_ttl", jobs.c.finished_at, sqlite_where=HAS_TTL, postgresql_where=HAS_TTL)

# Deleted jobs whose envelopes and results are still being deleted.
purged_jobs = Table(
    "purged_jobs",
    metadata,
    Column("job", Text, primary_key=True),
    Column("purged_at", Double, nullable=False),
)

# `accepted_at` is the time at which the envelope last entered the outbox: at first its creation, later the time it was
# taken as overdue; 0 after a replay and -1 after a change of its priority, which are overdue at once. `worker` claimed
# it last, and still holds it if there is a lease, of at most `lease_s` from now; a lease until 0 was ended by the error
# of its attempt. `error` is the error of the last failed attempt. An envelope is `chunked` if some of its results are
# in `result_chunks`.
#
# `results` are owed and `stored` are there, so that an envelope is done only when it is covered; a `stored` of null was
# written by an older version, and the rows are counted once. `deaths` counts the leases that ran out without a word
# from their worker. Of an envelope that is run alone, `suspect` is the item at work (-1 for all of them together), and
# `tries` counts the starts with this suspect.
#
# An envelope that waits for its time is published without a message: until `due_at`, or until the pause of `paused_by`
# (a subject of `pauses`) ends. `waits` are its results that are tried again, paused or replayed, as JSON; others are
# stored.
envelopes = Table(
    "envelopes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("items", BigInteger, nullable=False),
    Column("results", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("deadline_at", Double),
    Column("state", Text, nullable=False),
    Column("accepted_at", Double, nullable=False),
    Column("published_at", Double),
    Column("attempts", BigInteger, nullable=False, server_default="0"),
    Column("worker", Text),
    Column("leased_until", Double),
    Column("finished_at", Double),
    Column("error", Json),
    Column("lane", SmallInteger, nullable=False, server_default="0"),
    Column("stored", BigInteger),
    Column("lease_s", Double),
    Column("deaths", BigInteger, nullable=False, server_default="0"),
    Column("suspect", BigInteger),
    Column("tries", SmallInteger, nullable=False, server_default="0"),
    Column("chunked", Boolean),
    Column("due_at", Double),
    Column("paused_by", Text),
    Column("waits", Text),
    CheckConstraint("state IN ('accepted', 'published', 'done', 'dead')", name="envelopes_state"),
    Index("envelopes_job", "job"),
)

# Constants in the SQL, not parameters: the planner uses a partial index only if the query visibly implies its
# condition.
ACCEPTED = envelopes.c.state == literal_column("'accepted'")
PUBLISHED = envelopes.c.state == literal_column("'published'")
FINISHED = envelopes.c.state.in_([literal_column("'done'"), literal_column("'dead'")])
DEAD = envelopes.c.state == literal_column("'dead'")
UNFINISHED = envelopes.c.state.in_([literal_column("'accepted'"), literal_column("'published'")])

Index("envelopes_accepted", envelopes.c.accepted_at, sqlite_where=ACCEPTED, postgresql_where=ACCEPTED)
Index("envelopes_leased", envelopes.c.leased_until, sqlite_where=PUBLISHED, postgresql_where=PUBLISHED)
Index(
    "envelopes_unfinished",
    envelopes.c.model,
    envelopes.c.priority,
    envelopes.c.lane,
    envelopes.c.state,
    sqlite_where=UNFINISHED,
    postgresql_where=UNFINISHED,
)
_WAITS_FOR_TIME = PUBLISHED & (envelopes.c.due_at != None)  # noqa: E711 - SQL
_WAITS_FOR_RESUME = PUBLISHED & (envelopes.c.paused_by != None)  # noqa: E711 - SQL

Index("envelopes_due", envelopes.c.due_at, sqlite_where=_WAITS_FOR_TIME, postgresql_where=_WAITS_FOR_TIME)
Index("envelopes_paused", envelopes.c.paused_by, sqlite_where=_WAITS_FOR_RESUME, postgresql_where=_WAITS_FOR_RESUME)
Index("envelopes_dead", envelopes.c.finished_at, sqlite_where=DEAD, postgresql_where=DEAD)

# What an operator has paused: ``model:NAME``, ``task:NAME`` or ``tenant:NAME``.
pauses = Table(
    "pauses",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("paused_at", Double, nullable=False),
)

# What is submitted by the clock: see `results_store.sql.waiting.schedules`. `submission` is the producers' JSON.
# `next_at` was planned at `planned_from`; both are by the store's clock. A local source is on the machine `host`.
schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("submission", Text, nullable=False),
    Column("host", Text),
    Column("starting_deadline_s", Double),
    Column("next_at", Double),
    Column("planned_from", Double, nullable=False),
    Column("paused_at", Double),
    Column("created_at", Double, nullable=False),
)

# The key lets a time of a schedule have a single run, whatever the clocks do. `error` is that of the last attempt.
schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column("schedule", Text, primary_key=True),
    Column("planned_at", Double, primary_key=True),
    Column("state", Text, nullable=False),
    Column("attempts", BigInteger, nullable=False, server_default="0"),
    Column("runner", Text),
    Column("leased_until", Double),
    Column("job", Text),
    Column("error", Text),
    Column("begun_at", Double, nullable=False),
    Column("ended_at", Double),
)

UNFINISHED_RUN = schedule_runs.c.state == literal_column("'running'")

Index(
    "schedule_runs_unfinished",
    schedule_runs.c.leased_until,
    sqlite_where=UNFINISHED_RUN,
    postgresql_where=UNFINISHED_RUN,
)

# Succeeded results for later jobs of the same tenant. They live as long as the inputs of the job that computed them:
# `digest` tells whether somebody's guess of an input is right.
cached_results = Table(
    "cached_results",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("job", Text, nullable=False),
    Column("output", Text),
    Column("vector", LargeBinary),
    Column("precision", Text),
    Column("tokens", BigInteger),
    Column("stored_at", Double, nullable=False),
    Index("cached_results_job", "job"),
    Index("cached_results_age", "stored_at"),
)

payloads = Table(
    "payloads",
    metadata,
    Column("envelope", Text, ForeignKey("envelopes.id", ondelete="CASCADE"), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("content_type", Text, nullable=False),
)

results = Table(
    "results",
    metadata,
    Column("job", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("task", Text, primary_key=True),
    Column("envelope", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("key", Text),
    Column("output", Json),
    Column("vector", LargeBinary),
    Column("error", Json),
    Column("model", Text),
    Column("model_revision", Text),
    Column("precision", Text),  # null in rows of older versions
    Column("tokens", BigInteger),
    Column("batch", Text),
    Column("queued_at", Double),
    Column("batched_at", Double),
    Column("computed_at", Double),
    Column("stored_at", Double),
    CheckConstraint("state IN ('succeeded', 'failed', 'cancelled', 'expired')", name="results_state"),
)

FAILED = results.c.state == literal_column("'failed'")

Index("results_failed", results.c.stored_at, sqlite_where=FAILED, postgresql_where=FAILED)
Index("results_failed_envelope", results.c.job, results.c.envelope, sqlite_where=FAILED, postgresql_where=FAILED)

# Succeeded results of an envelope for a task, all new when they were stored: see `results_store.sql.chunks`. The texts
# are JSON, which neither database needs to read before somebody asks. A row in `results` with the key of a result here
# is the one that counts. The view `item_results` has a row for an item and task, whichever way it is stored.
result_chunks = Table(
    "result_chunks",
    metadata,
    Column("job", Text, primary_key=True),
    Column("envelope", Text, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("places", Text),
    Column("entries", Text, nullable=False),
    Column("labels", Text),
    Column("batches", Text, nullable=False),
    Column("dimension", BigInteger),
    Column("vectors", LargeBinary),
    Column("model", Text),
    Column("model_revision", Text),
    Column("precision", Text),
    Column("queued_at", Double),
    Column("stored_at", Double),
    Index("result_chunks_items", "job", "first", "envelope", "task", "last"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("model_revision", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("worker", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("forward_s", Double, nullable=False),
    Column("queue_wait_s", Double, nullable=False),
    Column("items", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("padded_tokens", BigInteger, nullable=False),
    Column("heads", Json, nullable=False),
    Column("priorities", Json, nullable=False),
    Column("idle_s", Double, nullable=False, server_default="0"),
    Column("predicted_s", Double),
    Column("cached_rows", BigInteger, nullable=False, server_default="0"),
    Column("trace", Json),
    Column("loads", BigInteger, nullable=False, server_default="0"),
    Column("host_s", Double),
    Index("batches_newest", "started_at"),
)

# Settings declared for models while the fleet runs: see `results_store.sql.declarations`.
declarations = Table(
    "declarations",
    metadata,
    Column("model", Text, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("settings", Json),
    Column("previous", Json),
    Column("proven", Boolean, nullable=False),
    Column("file_digest", Text, nullable=False),
    Column("declared_at", Double, nullable=False),
    Column("schemas", Json),
)

# Results of users' own Celery tasks, for `celery_backend`. The JSON is text, as Celery encodes it, because JSONB cannot
# hold NaN or a NUL in a string, which such tasks may return.
celery_tasks = Table(
    "celery_tasks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("result", Text),
    Column("traceback", Text),
    Column("children", Text),
    Column("done_at", Double),
    Column("group_id", Text),
    Column("parent_id", Text),
    Column("extended", Text),
)

_DONE = celery_tasks.c.done_at != None  # noqa: E711 - SQL

Index("celery_tasks_done", celery_tasks.c.done_at, sqlite_where=_DONE, postgresql_where=_DONE)

celery_groups = Table(
    "celery_groups",
    metadata,
    Column("id", Text, primary_key=True),
    Column("members", Text, nullable=False),
    Column("saved_at", Double, nullable=False),
)

# A chord's body is due once `returned` reaches `size + added`. The worker that sees this claims the chord, sends the
# body, and sets `done_at`. If it dies in between, the claim expires.
celery_chords = Table(
    "celery_chords",
    metadata,
    Column("id", Text, primary_key=True),
    Column("size", BigInteger),
    Column("added", BigInteger, nullable=False, server_default="0"),
    Column("returned", BigInteger, nullable=False, server_default="0"),
    Column("claimed_until", Double),
    Column("done_at", Double),
    Column("updated_at", Double, nullable=False),
)

celery_chord_parts = Table(
    "celery_chord_parts",
    metadata,
    Column("chord", Text, ForeignKey("celery_chords.id", ondelete="CASCADE"), primary_key=True),
    Column("task", Text, primary_key=True),
    Column("position", BigInteger),
    Column("state", Text, nullable=False),
    Column("result", Text, nullable=False),
)

# Whom to tell that a job has finished: not before `next_at`, which is null once there is nothing more to tell. `told`
# is the `finished_at` that was told or given up, so that a job which opens again is told again.
webhooks = Table(
    "webhooks",
    metadata,
    Column("job", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("next_at", Double),
    Column("attempts", BigInteger, nullable=False, server_default="0"),
    Column("attempted_at", Double),
    Column("status", BigInteger),  # of the last answer
    Column("error", Text),  # of the last attempt
    Column("told", Double),
)

OPEN_WEBHOOK = webhooks.c.next_at != None  # noqa: E711 - SQL

Index("webhooks_open", webhooks.c.next_at, sqlite_where=OPEN_WEBHOOK, postgresql_where=OPEN_WEBHOOK)

# Keys for the gateway. Only the holder knows the secret itself.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("tenant", Text, nullable=False),
    Column("operator", Boolean, nullable=False),
    Column("secret_hash", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("rate_per_s", Double),
    Column("role", Text),  # null in rows of older versions, which know operators and members
    Column("all_tenants", Boolean),
)

# What operators did: see `results_store.sql.auditing.audit_log`.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("name", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key", Text),
    Column("address", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Json, nullable=False),
    Index("audit_newest", "at", "id"),
)

# The owner can see a file once `stored_at` is set. Before that it is an upload in progress or an interrupted one.
gateway_files = Table(
    "gateway_files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("stored_at", Double),
    Index("gateway_files_of", "tenant", "id"),
)

# A table of its own, as for payloads: lists of files never read their content.
gateway_file_parts = Table(
    "gateway_file_parts",
    metadata,
    Column("file", Text, ForeignKey("gateway_files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

# OpenAI's batches. The work is a job's; `detail` holds endpoint, input file, metadata, window and the final counts.
# Gateways of revision 0009 work on batches under leases, and read `status` and `cancelled_at`. They never take a batch
# of a newer gateway: its lease lasts until `NEVER`.
gateway_batches = Table(
    "gateway_batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("detail", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("cancelled_at", Double),
    Column("finished_at", Double),
    Column("worker", Text),
    Column("leased_until", Double),
    Index("gateway_batches_of", "tenant", "id"),
)

_OPEN = gateway_batches.c.finished_at == None  # noqa: E711 - SQL

Index("gateway_batches_open", gateway_batches.c.leased_until, sqlite_where=_OPEN, postgresql_where=_OPEN)

# A site's items whose results are not final: see `results_store.edge.edge_spool`. `due_s` is by the site's own clock,
# which is no Unix time. `site` and `centre` hold an answer each.
edge_items = Table(
    "edge_items",
    metadata,
    Column("job", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("task", Text, primary_key=True),
    Column("envelope", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key", Text),
    Column("params", Json),
    Column("bytes", BigInteger, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("due_s", Double),
    Column("ask", Text),
    Column("site_job", Text),
    Column("batch", Text),
    Column("centre_job", Text),
    Column("place", BigInteger),  # in the submission that `ask` or `batch` names
    Column("site", Json),
    Column("centre", Json),
    Index("edge_items_next", "state", "priority", "job", "seq"),
    Index("edge_items_envelope", "envelope"),
    Index("edge_items_site_job", "site_job"),
    Index("edge_items_batch", "batch"),
)

# The site's clock and its counters, a row each.
edge_notes = Table(
    "edge_notes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Json, nullable=False),
)
