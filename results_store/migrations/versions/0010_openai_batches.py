"""An OpenAI batch is a job. The columns for older gateways stay; newer ones begin anew what they left open."""

import time
from typing import Any

import sqlalchemy as sa
from alembic import op

from results_store.gateway.gateway_batches import NEVER, begun_anew
from results_store.sql.schema import gateway_batches, gateway_file_parts, gateway_files

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass  # `GatewayBatches.adopt` takes a batch over when its gateway has left it


def downgrade() -> None:
    connection, batches = op.get_bind(), gateway_batches.c
    newer = (batches.leased_until == NEVER, batches.finished_at.is_(None))
    for row in connection.execute(sa.select(gateway_batches).where(*newer)).mappings().all():
        values: dict[str, Any] = {"detail": begun_anew(connection, row, time.time()), "leased_until": None}
        values["status"] = "validating" if row["cancelled_at"] is None else "cancelling"
        connection.execute(sa.update(gateway_batches).where(batches.id == row["id"]).values(values))
    # an older gateway does not render output files: files without content are lost
    rendered = (
        gateway_files.c.purpose == "batch_output",
        gateway_files.c.id.not_in(sa.select(gateway_file_parts.c.file)),
    )
    connection.execute(sa.delete(gateway_files).where(*rendered))
