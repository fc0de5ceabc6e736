"""Commands whose answers are read later, so that the work that follows does not wait for Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError


class SentCommands:
    """Commands that Redis has been sent, over a connection of their own. Their `answers` must be read."""

    def __init__(self, client: Any, commands: Sequence[Sequence[Any]]) -> None:
        """Send the commands. Raises ConnectionError."""
        if hasattr(client, "_prefix_args"):  # kombu's client with a prefix for all keys
            commands = [client._prefix_args(command) for command in commands]  # noqa: SLF001
        self._count = len(commands)
        self._pool = client.connection_pool
        self._connection = self._pool.get_connection()
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands))
        except BaseException:
            self._pool.release(self._connection)
            raise

    def answers(self) -> list[Any]:
        """Wait for the answers; a refusal is an answer. Raises ConnectionError."""
        try:
            return [self._answer() for _ in range(self._count)]
        finally:
            self._pool.release(self._connection)

    def _answer(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error
