"""Results of users' own Celery tasks: tasks, groups, chords."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "celery_tasks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("result", "traceback", "children")),
        sa.Column("done_at", sa.Double),
        *(sa.Column(name, sa.Text) for name in ("group_id", "parent_id", "extended")),
    )
    done = sa.text("done_at IS NOT NULL")
    op.create_index("celery_tasks_done", "celery_tasks", ["done_at"], sqlite_where=done, postgresql_where=done)
    op.create_table(
        "celery_groups",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("members", sa.Text, nullable=False),
        sa.Column("saved_at", sa.Double, nullable=False),
    )
    op.create_table(
        "celery_chords",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger),
        sa.Column("added", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("returned", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("claimed_until", sa.Double),
        sa.Column("done_at", sa.Double),
        sa.Column("updated_at", sa.Double, nullable=False),
    )
    op.create_table(
        "celery_chord_parts",
        sa.Column("chord", sa.Text, sa.ForeignKey("celery_chords.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("result", sa.Text, nullable=False),
    )


def downgrade() -> None:
    for table in ("celery_chord_parts", "celery_chords", "celery_groups", "celery_tasks"):
        op.drop_table(table)
