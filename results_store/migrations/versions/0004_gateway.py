"""The gateway's tables: keys, files, batches of requests."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("operator", sa.Boolean, nullable=False),
        sa.Column("secret_hash", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("expires_at", "rate_per_s")),
    )
    _create_files()
    op.create_table(
        "gateway_batches",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("detail", JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("cancelled_at", "finished_at")),
        sa.Column("worker", sa.Text),
        sa.Column("leased_until", sa.Double),
    )
    op.create_index("gateway_batches_of", "gateway_batches", ["tenant", "id"])
    unfinished = sa.text("finished_at IS NULL")
    op.create_index(
        "gateway_batches_open",
        "gateway_batches",
        ["leased_until"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )


def _create_files() -> None:
    op.create_table(
        "gateway_files",
        sa.Column("id", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("tenant", "name", "purpose")),
        sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("stored_at", sa.Double),
    )
    op.create_index("gateway_files_of", "gateway_files", ["tenant", "id"])
    op.create_table(
        "gateway_file_parts",
        sa.Column("file", sa.Text, sa.ForeignKey("gateway_files.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    for table in ("gateway_batches", "gateway_file_parts", "gateway_files", "api_keys"):
        op.drop_table(table)
