"""The tables and the statements on them, for SQLite and PostgreSQL."""
