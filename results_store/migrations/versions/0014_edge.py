"""A site keeps the items whose results are not final, and its clock."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "edge_items",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("envelope", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("params", Json),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("queued_at", sa.Double, nullable=False),
        sa.Column("due_s", sa.Double),
        sa.Column("ask", sa.Text),
        sa.Column("site_job", sa.Text),
        sa.Column("batch", sa.Text),
        sa.Column("centre_job", sa.Text),
        sa.Column("place", sa.BigInteger),
        sa.Column("site", Json),
        sa.Column("centre", Json),
    )
    op.create_index("edge_items_next", "edge_items", ["state", "priority", "job", "seq"])
    op.create_index("edge_items_envelope", "edge_items", ["envelope"])
    op.create_index("edge_items_site_job", "edge_items", ["site_job"])
    op.create_index("edge_items_batch", "edge_items", ["batch"])
    op.create_table(
        "edge_notes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", Json, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("edge_notes")
    op.drop_table("edge_items")
