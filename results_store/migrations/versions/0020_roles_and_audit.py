"""Keys have roles, and what operators do is written down."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("role", sa.Text))
    op.add_column("api_keys", sa.Column("all_tenants", sa.Boolean))
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON().with_variant(postgresql.JSONB, "postgresql"), nullable=False),
    )
    op.create_index("audit_newest", "audit_log", ["at", "id"])


def downgrade() -> None:
    """Older versions know no viewers."""
    op.drop_table("audit_log")
    op.execute("DELETE FROM api_keys WHERE role = 'viewer'")
    op.drop_column("api_keys", "all_tenants")
    op.drop_column("api_keys", "role")
