"""The number of tokens of each input."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("results", sa.Column("tokens", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("results", "tokens")
