"""Webhooks: whom to tell that a job has finished, and what came of it."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("next_at", sa.Double),
        sa.Column("attempts", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attempted_at", sa.Double),
        sa.Column("status", sa.BigInteger),
        sa.Column("error", sa.Text),
        sa.Column("told", sa.Double),
    )
    open_ = sa.text("next_at IS NOT NULL")
    op.create_index("webhooks_open", "webhooks", ["next_at"], sqlite_where=open_, postgresql_where=open_)


def downgrade() -> None:
    op.drop_table("webhooks")
