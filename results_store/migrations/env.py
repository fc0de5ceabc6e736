"""Alembic's entry point: runs the revisions on the connection and in the transaction of `run.py`."""

from alembic import context

from results_store.sql.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,  # also on SQLite, because its transactions are begun by hand
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
