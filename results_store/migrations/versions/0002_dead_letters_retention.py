"""Dead letters and replay; a job's time to live and the purge."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

_COMMON = (
    "id, job, model, priority, items, results, created_at, deadline_at, state, accepted_at, published_at, attempts, "
    "worker, leased_until, finished_at"
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("ttl_s", sa.Double))
    _partial_index("jobs_ttl", "jobs", ["finished_at"], "ttl_s IS NOT NULL")
    op.create_table(
        "purged_jobs",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("purged_at", sa.Double, nullable=False),
    )
    _partial_index("results_failed_envelope", "results", ["job", "envelope"], "state = 'failed'")
    states = "state IN ('accepted', 'published', 'done', 'dead')"
    unfinished = "state IN ('accepted', 'published')"
    if op.get_bind().dialect.name == "sqlite":
        _rebuild([sa.Column("job", sa.Text, nullable=False)], [sa.Column("error", Json)], states, unfinished)
    else:
        op.drop_constraint("envelopes_job_fkey", "envelopes")
        op.add_column("envelopes", sa.Column("error", Json))
        _restate(states, unfinished)
    _partial_index("envelopes_dead", "envelopes", ["finished_at"], "state = 'dead'")


def downgrade() -> None:
    # An older version counts a `dead` envelope as unfinished, and would fail on the rest of a half-purged job.
    op.execute("UPDATE envelopes SET state = 'done' WHERE state = 'dead'")
    op.execute("DELETE FROM results WHERE job IN (SELECT job FROM purged_jobs)")
    op.execute(
        "DELETE FROM payloads WHERE envelope IN (SELECT id FROM envelopes WHERE job NOT IN (SELECT id FROM jobs))"
    )
    op.execute("DELETE FROM envelopes WHERE job NOT IN (SELECT id FROM jobs)")
    states = "state IN ('accepted', 'published', 'done')"
    op.drop_index("envelopes_dead", "envelopes")
    if op.get_bind().dialect.name == "sqlite":
        _rebuild([sa.Column("job", sa.Text, sa.ForeignKey("jobs.id"), nullable=False)], [], states, "state != 'done'")
    else:
        _restate(states, "state != 'done'")
        op.drop_column("envelopes", "error")
        op.create_foreign_key("envelopes_job_fkey", "envelopes", "jobs", ["job"], ["id"])
    op.drop_index("results_failed_envelope", "results")
    op.drop_table("purged_jobs")
    op.drop_index("jobs_ttl", "jobs")
    op.drop_column("jobs", "ttl_s")


def _restate(states: str, unfinished: str) -> None:
    op.drop_constraint("envelopes_state", "envelopes")
    op.create_check_constraint("envelopes_state", "envelopes", states)
    op.drop_index("envelopes_unfinished", "envelopes")
    _partial_index("envelopes_unfinished", "envelopes", ["model", "priority", "state"], unfinished)


def _rebuild(job: list[sa.Column[str]], further: list[sa.Column[Any]], states: str, unfinished: str) -> None:
    """Copy the table: SQLite changes neither a constraint nor a foreign key in place."""
    op.create_table(
        "envelopes_rebuilt",
        sa.Column("id", sa.Text, primary_key=True),
        *job,
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("items", sa.BigInteger, nullable=False),
        sa.Column("results", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("deadline_at", sa.Double),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("accepted_at", sa.Double, nullable=False),
        sa.Column("published_at", sa.Double),
        sa.Column("attempts", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("worker", sa.Text),
        sa.Column("leased_until", sa.Double),
        sa.Column("finished_at", sa.Double),
        *further,
        sa.CheckConstraint(states, name="envelopes_state"),
    )
    op.execute(f"INSERT INTO envelopes_rebuilt ({_COMMON}) SELECT {_COMMON} FROM envelopes")  # noqa: S608 - constants
    op.drop_table("envelopes")
    op.rename_table("envelopes_rebuilt", "envelopes")
    op.create_index("envelopes_job", "envelopes", ["job"])
    _partial_index("envelopes_accepted", "envelopes", ["accepted_at"], "state = 'accepted'")
    _partial_index("envelopes_leased", "envelopes", ["leased_until"], "state = 'published'")
    _partial_index("envelopes_unfinished", "envelopes", ["model", "priority", "state"], unfinished)


def _partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
