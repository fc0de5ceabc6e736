"""Results of an envelope may be stored in chunks; a view shows a row for each item and task."""

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

COLUMNS = (
    "job, seq, task, envelope, state, key, output, vector, error, model, model_revision, precision, tokens, batch, "
    "queued_at, batched_at, computed_at, stored_at"
)

SQLITE = f"""
CREATE VIEW item_results AS
SELECT {COLUMNS} FROM results
UNION ALL
SELECT
  chunk.job,
  chunk.first + coalesce(json_extract(chunk.places, '$[' || entry.key || ']'), entry.key) AS seq,
  chunk.task,
  chunk.envelope,
  'succeeded',
  CASE json_type(entry.value, '$[0]') WHEN 'text' THEN json_extract(entry.value, '$[0]') END,
  CASE WHEN chunk.vectors IS NULL THEN (
    SELECT json_group_array(json_object(
      'label', json_extract(chunk.labels, '$[' || json_extract(pair.value, '$[0]') || ']'),
      'score', json_extract(pair.value, '$[1]')
    )) FROM json_each(entry.value, '$[3]') AS pair
  ) END,
  substr(chunk.vectors, 1 + 4 * chunk.dimension * entry.key, 4 * chunk.dimension),
  NULL,
  chunk.model,
  chunk.model_revision,
  chunk.precision,
  json_extract(entry.value, '$[1]'),
  json_extract(chunk.batches, '$[' || json_extract(entry.value, '$[2]') || '][0]'),
  chunk.queued_at,
  json_extract(chunk.batches, '$[' || json_extract(entry.value, '$[2]') || '][1]'),
  json_extract(chunk.batches, '$[' || json_extract(entry.value, '$[2]') || '][2]'),
  chunk.stored_at
FROM result_chunks AS chunk, json_each(chunk.entries) AS entry
WHERE NOT EXISTS (
  SELECT 1 FROM results AS own WHERE own.job = chunk.job AND own.task = chunk.task
  AND own.seq = chunk.first + coalesce(json_extract(chunk.places, '$[' || entry.key || ']'), entry.key)
)
"""  # noqa: S608 - constants

# OFFSET 0: the texts are read once for a chunk
POSTGRESQL = f"""
CREATE VIEW item_results AS
SELECT {COLUMNS} FROM results
UNION ALL
SELECT
  chunk.job,
  item.seq,
  chunk.task,
  chunk.envelope,
  'succeeded',
  CASE jsonb_typeof(item.entry -> 0) WHEN 'string' THEN item.entry ->> 0 END,
  CASE WHEN chunk.vectors IS NULL THEN (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
      'label', parsed.labels -> CAST(pair.value ->> 0 AS integer), 'score', pair.value -> 1
    ) ORDER BY pair.number), CAST('[]' AS jsonb))
    FROM jsonb_array_elements(item.entry -> 3) WITH ORDINALITY AS pair (value, number)
  ) END,
  substr(chunk.vectors, CAST(1 + 4 * chunk.dimension * item.place AS integer), CAST(4 * chunk.dimension AS integer)),
  CAST(NULL AS jsonb),
  chunk.model,
  chunk.model_revision,
  chunk.precision,
  CAST(item.entry ->> 1 AS bigint),
  item.batch ->> 0,
  chunk.queued_at,
  CAST(item.batch ->> 1 AS float8),
  CAST(item.batch ->> 2 AS float8),
  chunk.stored_at
FROM result_chunks AS chunk
CROSS JOIN LATERAL (
  SELECT CAST(chunk.places AS jsonb) AS places, CAST(chunk.labels AS jsonb) AS labels,
    CAST(chunk.batches AS jsonb) AS batches OFFSET 0
) AS parsed
CROSS JOIN LATERAL (
  SELECT entry, number - 1 AS place,
    chunk.first + coalesce(CAST(parsed.places ->> CAST(number - 1 AS integer) AS bigint), number - 1) AS seq,
    parsed.batches -> CAST(entry ->> 2 AS integer) AS batch
  FROM jsonb_array_elements(CAST(chunk.entries AS jsonb)) WITH ORDINALITY AS entries (entry, number) OFFSET 0
) AS item
WHERE NOT EXISTS (
  SELECT 1 FROM results AS own WHERE own.job = chunk.job AND own.task = chunk.task AND own.seq = item.seq
)
"""  # noqa: S608 - constants


def upgrade() -> None:
    op.add_column("envelopes", sa.Column("chunked", sa.Boolean))
    op.create_table(
        "result_chunks",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("envelope", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("places", sa.Text),
        sa.Column("entries", sa.Text, nullable=False),
        sa.Column("labels", sa.Text),
        sa.Column("batches", sa.Text, nullable=False),
        sa.Column("dimension", sa.BigInteger),
        sa.Column("vectors", sa.LargeBinary),
        sa.Column("model", sa.Text),
        sa.Column("model_revision", sa.Text),
        sa.Column("precision", sa.Text),
        sa.Column("queued_at", sa.Double),
        sa.Column("stored_at", sa.Double),
    )
    op.create_index("result_chunks_items", "result_chunks", ["job", "first", "envelope", "task", "last"])
    if op.get_bind().dialect.name == "sqlite":
        op.execute(SQLITE)
        return
    # numbers do not shrink, and a vector is then read without its neighbours
    op.execute("ALTER TABLE result_chunks ALTER COLUMN vectors SET STORAGE EXTERNAL")
    op.execute(POSTGRESQL)


#: The stored envelopes that are read since this revision (`producers.wire.messages.TextColumns`).
COLUMNAR = "application/x-argosy-columns"


def with_items(payload: bytes) -> bytes:
    """Return an envelope in columns as an envelope with items, in MessagePack."""
    columns = msgspec.msgpack.decode(payload)
    own = {name: columns.pop(name, None) for name in ("tasks", "params", "first", "texts", "places", "keys")}
    texts = own["texts"]
    rows = zip(own["places"] or range(len(texts)), texts, own["keys"] or [None] * len(texts), strict=True)
    items = [
        {"seq": own["first"] + place, "input": text, "tasks": own["tasks"], "params": own["params"] or {}, "key": key}
        for place, text, key in rows
    ]
    return msgspec.msgpack.encode(columns | {"version": 1, "items": items})


def downgrade() -> None:
    """The results in chunks become rows, and the envelopes in columns have items."""
    connection = op.get_bind()
    wanted = sa.text("SELECT envelope FROM payloads WHERE content_type = :columnar")
    for (envelope,) in connection.execute(wanted, {"columnar": COLUMNAR}).all():
        found = connection.execute(sa.text("SELECT payload FROM payloads WHERE envelope = :id"), {"id": envelope})
        changed = {"id": envelope, "payload": with_items(bytes(found.scalar_one())), "type": "application/x-msgpack"}
        connection.execute(
            sa.text("UPDATE payloads SET payload = :payload, content_type = :type WHERE envelope = :id"), changed
        )
    op.execute(
        f"INSERT INTO results ({COLUMNS}) SELECT {COLUMNS} FROM item_results "  # noqa: S608 - constants
        "WHERE (job, envelope, task) IN (SELECT job, envelope, task FROM result_chunks) ON CONFLICT DO NOTHING"
    )
    op.execute("DROP VIEW item_results")
    op.drop_table("result_chunks")
    op.drop_column("envelopes", "chunked")
