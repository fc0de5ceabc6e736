"""Keys have roles, and what operators do is written down."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("role", sa.Text))
    op.add_column("api_keys", sa.Column("all_tenants", sa.Boolean))


def downgrade() -> None:
    """Older versions know no viewers."""
    op.execute("DELETE FROM api_keys WHERE role = 'viewer'")
    op.drop_column("api_keys", "all_tenants")
    op.drop_column("api_keys", "role")
