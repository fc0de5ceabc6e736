"""Tenants: their shares and limits, and the lane of each envelope."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("lane", sa.SmallInteger, nullable=False),
        sa.Column("weight", sa.Double, nullable=False, server_default="1"),
        sa.Column("max_items_per_s", sa.Double),
        sa.Column("max_in_flight", sa.BigInteger),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    # the tenant of work without a tenant
    op.execute("INSERT INTO tenants (name, lane, created_at) VALUES ('', 0, 0)")
    op.add_column("jobs", sa.Column("tenant", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("envelopes", sa.Column("lane", sa.SmallInteger, nullable=False, server_default="0"))
    op.create_index("jobs_of_tenant", "jobs", ["tenant", "created_at", "id"])
    running = sa.text("finished_at IS NULL")
    op.create_index("jobs_running", "jobs", ["tenant"], sqlite_where=running, postgresql_where=running)
    _index_unfinished(["model", "priority", "lane", "state"])


def downgrade() -> None:
    _index_unfinished(["model", "priority", "state"])
    op.drop_index("jobs_running", "jobs")
    op.drop_index("jobs_of_tenant", "jobs")
    op.drop_column("envelopes", "lane")
    op.drop_column("jobs", "tenant")
    op.drop_table("tenants")


def _index_unfinished(columns: list[str]) -> None:
    unfinished = sa.text("state IN ('accepted', 'published')")
    op.drop_index("envelopes_unfinished", "envelopes")
    op.create_index("envelopes_unfinished", "envelopes", columns, sqlite_where=unfinished, postgresql_where=unfinished)
