"""A job with an idempotency key keeps its tasks and parameters, and a fingerprint of its rows."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request", sa.Text))
    op.add_column("jobs", sa.Column("fingerprint", sa.Text))


def downgrade() -> None:
    op.drop_column("jobs", "fingerprint")
    op.drop_column("jobs", "request")
