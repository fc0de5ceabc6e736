"""The flight recorder: the items of a batch, its predicted time, and the idle time of the device before it."""

import sqlalchemy as sa
from alembic import op

from results_store.sql.schema import Json

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("idle_s", sa.Double, nullable=False, server_default="0"))
    op.add_column("batches", sa.Column("predicted_s", sa.Double))
    op.add_column("batches", sa.Column("cached_rows", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("batches", sa.Column("trace", Json))


def downgrade() -> None:
    for column in ("trace", "cached_rows", "predicted_s", "idle_s"):
        op.drop_column("batches", column)
