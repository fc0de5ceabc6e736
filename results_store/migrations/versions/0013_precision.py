"""A result has the precision of its pass."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("results", sa.Column("precision", sa.Text))


def downgrade() -> None:
    op.drop_column("results", "precision")
