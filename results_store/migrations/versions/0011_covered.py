"""An envelope's row knows what is stored of it, how long its lease may be, and how its workers died."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_NEW = (
    sa.Column("stored", sa.BigInteger),
    sa.Column("lease_s", sa.Double),
    sa.Column("deaths", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("suspect", sa.BigInteger),
    sa.Column("tries", sa.SmallInteger, nullable=False, server_default="0"),
)


def upgrade() -> None:
    for column in _NEW:
        op.add_column("envelopes", column.copy())


def downgrade() -> None:
    for column in _NEW:
        op.drop_column("envelopes", column.name)
