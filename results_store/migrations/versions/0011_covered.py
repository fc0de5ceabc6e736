"""An envelope's row knows what is stored of it, how long its lease may be, and how its workers died; a job its newest
result's time."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("envelopes", sa.Column("stored", sa.BigInteger))
    op.add_column("envelopes", sa.Column("lease_s", sa.Double))
    op.add_column("envelopes", sa.Column("deaths", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("envelopes", sa.Column("suspect", sa.BigInteger))
    op.add_column("envelopes", sa.Column("tries", sa.SmallInteger, nullable=False, server_default="0"))
    op.add_column("declarations", sa.Column("schemas", sa.JSON().with_variant(JSONB(), "postgresql")))
    op.add_column("jobs", sa.Column("progressed_at", sa.Double))


def downgrade() -> None:
    op.drop_column("jobs", "progressed_at")
    op.drop_column("declarations", "schemas")
    for name in ("tries", "suspect", "deaths", "lease_s", "stored"):
        op.drop_column("envelopes", name)
