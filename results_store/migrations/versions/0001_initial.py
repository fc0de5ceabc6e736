"""Jobs, envelopes with their payloads, results, batches."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    _jobs()
    _envelopes()
    _results()
    _batches()


def downgrade() -> None:
    for table in ("batches", "results", "payloads", "envelopes", "jobs"):
        op.drop_table(table)


def _jobs() -> None:
    counters = ("items", "total", "succeeded", "failed", "cancelled", "expired")
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("idempotency_key", sa.Text, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double),
        sa.Column("cancelled_at", sa.Double),
        *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in counters),
    )
    op.create_index("jobs_newest", "jobs", ["created_at", "id"])


def _envelopes() -> None:
    op.create_table(
        "envelopes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.id"), nullable=False),
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
        sa.CheckConstraint("state IN ('accepted', 'published', 'done')", name="envelopes_state"),
    )
    op.create_index("envelopes_job", "envelopes", ["job"])
    _partial_index("envelopes_accepted", "envelopes", ["accepted_at"], "state = 'accepted'")
    _partial_index("envelopes_leased", "envelopes", ["leased_until"], "state = 'published'")
    _partial_index("envelopes_unfinished", "envelopes", ["model", "priority", "state"], "state != 'done'")
    op.create_table(
        "payloads",
        sa.Column("envelope", sa.Text, sa.ForeignKey("envelopes.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("content_type", sa.Text, nullable=False),
    )


def _results() -> None:
    op.create_table(
        "results",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("envelope", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("output", Json),
        sa.Column("vector", sa.LargeBinary),
        sa.Column("error", Json),
        sa.Column("model", sa.Text),
        sa.Column("model_revision", sa.Text),
        sa.Column("batch", sa.Text),
        sa.Column("queued_at", sa.Double),
        sa.Column("batched_at", sa.Double),
        sa.Column("computed_at", sa.Double),
        sa.Column("stored_at", sa.Double),
        sa.CheckConstraint("state IN ('succeeded', 'failed', 'cancelled', 'expired')", name="results_state"),
    )
    _partial_index("results_failed", "results", ["stored_at"], "state = 'failed'")


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("model", "model_revision", "device", "worker")),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("started_at", "forward_s", "queue_wait_s")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("items", "rows", "tokens", "padded_tokens")),
        sa.Column("heads", Json, nullable=False),
        sa.Column("priorities", Json, nullable=False),
    )
    op.create_index("batches_newest", "batches", ["started_at"])


def _partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
