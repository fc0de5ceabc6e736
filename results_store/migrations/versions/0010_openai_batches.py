"""An OpenAI batch is a job: its own status, cancelling and leases go, and open batches are submitted anew."""

import time
from typing import Any

import sqlalchemy as sa
from alembic import op

from results_store.sql.schema import Json

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_GONE = (("status", sa.Text), ("cancelled_at", sa.Double), ("worker", sa.Text), ("leased_until", sa.Double))
_BATCHES = sa.table(
    "gateway_batches",
    *(sa.column(name) for name in ("id", "tenant", "created_at", "finished_at", "status", "cancelled_at")),
    sa.column("detail", Json),
)
_JOBS = sa.table("jobs", *(sa.column(name) for name in ("idempotency_key", "finished_at", "cancelled_at")))
_FILES = sa.table("gateway_files", sa.column("id"), sa.column("purpose"))
_PARTS = sa.table("gateway_file_parts", sa.column("file"))


def upgrade() -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(_BATCHES)).mappings().all():
        detail = dict(row["detail"])
        if row["finished_at"] is None:
            _take_back(connection, row)
            detail = _as_new(detail, row["created_at"])
        if row["cancelled_at"] is not None:
            detail["cancelling_at"] = row["cancelled_at"]
        if row["status"] == "expired":
            detail["expired"] = True
        connection.execute(sa.update(_BATCHES).where(_BATCHES.c.id == row["id"]).values(detail=detail))
    op.drop_index("gateway_batches_open", "gateway_batches")
    for name, _ in _GONE:
        op.drop_column("gateway_batches", name)
    _index_open("id")


def downgrade() -> None:
    connection = op.get_bind()
    op.drop_index("gateway_batches_open", "gateway_batches")
    for name, kind in _GONE:
        op.add_column(
            "gateway_batches", sa.Column(name, kind, nullable=name != "status", server_default=_default(name))
        )
    for row in connection.execute(sa.select(_BATCHES)).mappings().all():
        detail = dict(row["detail"])
        status, cancelled_at = _status(detail), detail.get("cancelling_at")
        if row["finished_at"] is None:
            _take_back(connection, row)
            detail = _as_new(detail, row["created_at"])
            status = "validating" if cancelled_at is None else "cancelling"
        values = {"status": status, "cancelled_at": cancelled_at, "detail": detail}
        connection.execute(sa.update(_BATCHES).where(_BATCHES.c.id == row["id"]).values(values))
    # an older gateway does not render output files: files without content are lost
    rendered = (_FILES.c.purpose == "batch_output", _FILES.c.id.not_in(sa.select(_PARTS.c.file)))
    connection.execute(sa.delete(_FILES).where(*rendered))
    _index_open("leased_until")


def _as_new(detail: dict[str, Any], created_at: float) -> dict[str, Any]:
    """Return the detail of a batch that begins now. Its window is as long as it was."""
    kept = {name: detail[name] for name in ("endpoint", "input_file_id", "metadata")}
    expires_at = time.time() + detail["expires_at"] - created_at
    return {**kept, "expires_at": expires_at, "counts": {"total": 0, "completed": 0, "failed": 0}}


def _take_back(connection: sa.Connection, row: Any) -> None:
    """Cancel the job of an open batch, which names its items in the other version's way, and remove its begun files."""
    key = f"{row['tenant']}\x1f{row['id']}" if row["tenant"] else row["id"]
    mine = _JOBS.c.idempotency_key == key
    unfinished = (_JOBS.c.finished_at.is_(None), _JOBS.c.cancelled_at.is_(None))
    connection.execute(sa.update(_JOBS).where(mine, *unfinished).values(cancelled_at=time.time()))
    connection.execute(sa.update(_JOBS).where(mine).values(idempotency_key=None))
    begun = [f"file-{row['id'].removeprefix('batch_')}-{kind}" for kind in ("output", "error")]
    connection.execute(sa.delete(_PARTS).where(_PARTS.c.file.in_(begun)))
    connection.execute(sa.delete(_FILES).where(_FILES.c.id.in_(begun)))


def _status(detail: dict[str, Any]) -> str:
    if detail.get("cancelling_at") is not None:
        return "cancelled"
    return "failed" if detail.get("errors") else "expired" if detail.get("expired") else "completed"


def _default(name: str) -> str | None:
    return "completed" if name == "status" else None


def _index_open(column: str) -> None:
    unfinished = sa.text("finished_at IS NULL")
    op.create_index(
        "gateway_batches_open", "gateway_batches", [column], sqlite_where=unfinished, postgresql_where=unfinished
    )
