"""A batch has the host's part of the wait before it."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("host_s", sa.Double))


def downgrade() -> None:
    op.drop_column("batches", "host_s")
