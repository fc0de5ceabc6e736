"""Declared settings of models; the number of model loads before a batch."""

import sqlalchemy as sa
from alembic import op

from results_store.sql.schema import Json

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "declarations",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("settings", Json),
        sa.Column("previous", Json),
        sa.Column("proven", sa.Boolean, nullable=False),
        sa.Column("file_digest", sa.Text, nullable=False),
        sa.Column("declared_at", sa.Double, nullable=False),
    )
    op.add_column("batches", sa.Column("loads", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("batches", "loads")
    op.drop_table("declarations")
