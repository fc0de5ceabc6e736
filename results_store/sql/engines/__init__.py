"""The two engines: how connections to SQLite and PostgreSQL are opened, checked and bounded."""
