"""The history of the schema, a revision per file (Alembic)."""
