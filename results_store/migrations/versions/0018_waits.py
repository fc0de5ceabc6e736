"""Envelopes wait for their time, or for the end of a pause."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

WAITS = {"envelopes_due": "due_at", "envelopes_paused": "paused_by"}


def upgrade() -> None:
    op.add_column("envelopes", sa.Column("due_at", sa.Double))
    op.add_column("envelopes", sa.Column("paused_by", sa.Text))
    op.add_column("envelopes", sa.Column("waits", sa.Text))
    for name, column in WAITS.items():
        waits = sa.text(f"state = 'published' AND {column} IS NOT NULL")
        op.create_index(name, "envelopes", [column], sqlite_where=waits, postgresql_where=waits)
    op.create_table(
        "pauses",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("paused_at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Older versions publish what waits as if Redis had lost it, and run what is paused."""
    op.drop_table("pauses")
    for name in WAITS:
        op.drop_index(name, "envelopes")
    for column in ("waits", "paused_by", "due_at"):
        op.drop_column("envelopes", column)
