"""Schedules with their runs, and results that are kept for later jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("submission", sa.Text, nullable=False),
        sa.Column("host", sa.Text),
        sa.Column("starting_deadline_s", sa.Double),
        sa.Column("next_at", sa.Double),
        sa.Column("planned_from", sa.Double, nullable=False),
        sa.Column("paused_at", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "schedule_runs",
        sa.Column("schedule", sa.Text, primary_key=True),
        sa.Column("planned_at", sa.Double, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("runner", sa.Text),
        sa.Column("leased_until", sa.Double),
        sa.Column("job", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("begun_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
    )
    unfinished = sa.text("state = 'running'")
    op.create_index(
        "schedule_runs_unfinished",
        "schedule_runs",
        ["leased_until"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
    op.create_table(
        "cached_results",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("output", sa.Text),
        sa.Column("vector", sa.LargeBinary),
        sa.Column("precision", sa.Text),
        sa.Column("tokens", sa.BigInteger),
        sa.Column("stored_at", sa.Double, nullable=False),
    )
    op.create_index("cached_results_job", "cached_results", ["job"])
    op.create_index("cached_results_age", "cached_results", ["stored_at"])


def downgrade() -> None:
    """Nothing is scheduled any more, and every result is computed."""
    for name in ("cached_results", "schedule_runs", "schedules"):
        op.drop_table(name)
